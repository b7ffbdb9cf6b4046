"""The LightningDataModule: files in, micro-batches out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, Literal, final

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from glm_lightning.data import ahead, cache, packing
from glm_lightning.data import plan as planning
from glm_lightning.data.dataset import Dataset
from glm_lightning.data.formats import RowKind
from glm_lightning.data.gate import Gate, OnBadRow
from glm_lightning.data.inputs import AUTO, sources_of
from glm_lightning.data.judging import Severity
from glm_lightning.data.plan import MicroBatch, Plan, evaluation_batches, padded_lengths
from glm_lightning.data.sources import Kinds, Splits, find, load_splits
from glm_lightning.files import write_text
from glm_lightning.templates import Template
from glm_lightning.tokenizers import Tokenizer
from glm_lightning.types import IGNORE, Batch, Conversation, UserError

Given = str | dict[str, Any] | list[str | dict[str, Any]]
"""Sources of rows, as yaml has them."""

AUTO_SHARE = 0.05
"""Share of the training rows that validate, if nothing is said."""


@final
class DataModule(pl.LightningDataModule):
    """Train, validation and test rows.

    Args:
        train: file, folder, glob or hub's name, or several of them; each may be a mapping, see `sources_of`.
        format: how a row is read, unless a source says otherwise: by name, or ``auto`` to recognise it.
        encoding: of texts without a byte order mark; None is UTF-8.
        val: the same, or how many rows (a count, or a share below 1) of ``train`` are set aside; ``auto`` is
            `AUTO_SHARE`, or nothing where that is not one row.
        test: the same as ``val``.
        split: ``seeded`` sets aside by content and seed, ``last`` the last rows.
        seed: of the split and of the order.
        max_length: longest sample in tokens; longer ones are truncated, and counted.
        batch_size: rows of an optimizer step, over all devices and accumulated micro-batches.
        max_tokens: padded positions of a micro-batch.
        pad_to_multiple: positions are rounded up to a multiple of this.
        group_steps: steps whose rows are sorted by length together; 1 mixes lengths at random.
        packing: several samples share a row of up to ``max_length`` positions, each as if it were alone; ``auto`` does
            so with texts.
        on_bad_row: ``error`` reports all bad rows and stops, ``quarantine`` writes them into the run folder instead.
        max_bad_share: largest share of rows that may be in quarantine.
        severity: kinds of fault that are to be an ``error``, a ``notice`` or ``off``; the rest as they come.
        cache_dir: folder of encoded data.
        num_workers: processes that read ahead; 0 reads in the training process.
    """

    def __init__(
        self,
        *,
        train: Given,
        format: str | RowKind[Any] = AUTO,
        encoding: str | None = None,
        val: Given | int | float | None = None,
        test: Given | int | float | None = None,
        split: Literal["seeded", "last"] = "seeded",
        seed: int = 0,
        max_length: int = 1024,
        batch_size: int = 16,
        max_tokens: int = 4096,
        pad_to_multiple: int = 64,
        group_steps: int = 1,
        packing: bool | Literal["auto"] = "auto",
        on_bad_row: OnBadRow = "error",
        max_bad_share: float = 0.01,
        severity: dict[str, Severity] | None = None,
        cache_dir: str | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        numbers = {
            "max_length": max_length,
            "batch_size": batch_size,
            "pad_to_multiple": pad_to_multiple,
            "group_steps": group_steps,
        }
        problems = [f"data.{key} is {value}: must be 1 or more" for key, value in numbers.items() if value < 1]
        if num_workers < 0:
            problems.append(f"data.num_workers is {num_workers}: must be 0 or more")
        gate = Gate(on_bad_row=on_bad_row, max_bad_share=max_bad_share, severity=severity)
        problems += gate.check()
        if max_tokens < max_length:
            problems.append(
                f"data.max_tokens is {max_tokens}: must hold at least one sample of data.max_length={max_length}"
            )
        if problems:
            raise UserError(problems)
        self._val_required = val != "auto"
        self._parts: dict[str, Any] = {"train": train, "val": val if self._val_required else AUTO_SHARE, "test": test}
        self._reading: dict[str, Any] = {"format": format, "encoding": encoding}
        self._split = split
        self._gate = gate
        self._folder = Path(cache_dir).expanduser() if cache_dir else cache.default_folder()
        self.max_length = max_length
        self.batch_size, self.max_tokens, self.pad_to_multiple = batch_size, max_tokens, pad_to_multiple
        self.group_steps, self.seed, self.num_workers = group_steps, seed, num_workers
        self._packing = packing
        self.packing = packing is True

    def check(self) -> None:
        """Raise `UserError` for files that are not there; nothing is read."""
        find(self._parts, **self._reading)

    @property
    def train_paths(self) -> list[str]:
        """Where the rows to learn are, as they were named."""
        return [str(source.path) for source in sources_of(self._parts["train"], key="data.train", **self._reading)]

    def load(
        self, tokenizer: Tokenizer, template: Template, *, learned: Kinds = (Conversation,), packs: bool = True
    ) -> Splits:
        """Read, judge and encode all rows (or find them encoded); done before any model is loaded.

        Args:
            tokenizer: see `Encoder`.
            template: see `Encoder`.
            learned: what rows that train and validate may hold.
            packs: whether samples may share a row, if it is for us to say.
        """
        try:
            self.splits = load_splits(
                **self._parts,
                val_required=self._val_required,
                **self._reading,
                split=self._split,
                seed=self.seed,
                max_length=self.max_length,
                cache_dir=self._folder,
                gate=self._gate,
                tokenizer=tokenizer,
                template=template,
                learned=learned,
            )
        except OSError as error:
            raise UserError(
                f"data: {error}; encoded data goes to data.cache_dir={self._folder}, name another"
            ) from error
        self._pad_id = tokenizer.pad_id
        if self._packing == "auto":
            self.packing = packs and self.splits.train.has_texts
        return self.splits

    def schedule(self, *, world_size: int, accumulate: int | Literal["auto"], epochs: int) -> Plan:
        """Fix the plan of all epochs; ``auto`` takes the fewest micro-batches that fit the token budget."""
        train = self.splits.train
        both = self.packing and train.paired
        plan = Plan(
            lengths=train.lengths if self.packing else train.widths,
            num_supervised=np.ones(len(train), np.int32) if train.paired else train.num_supervised,
            batch_size=self.batch_size,
            max_tokens=self.max_tokens,
            pad_to_multiple=self.pad_to_multiple,
            seed=self.seed,
            group_steps=self.group_steps,
            packed=min((1 + both) * self.max_length, self.max_tokens) if self.packing else None,
            sequences=1 + train.paired,
            world_size=world_size,
            accumulate=1 if accumulate == "auto" else accumulate,
        )
        needed = self._needed(plan, epochs)
        if accumulate == "auto":
            plan = replace(plan, accumulate=needed)
        else:
            plan.check(needed)
        self.plan = plan
        return plan

    def _needed(self, plan: Plan, epochs: int) -> int:
        """`Plan.needed`, which is remembered, for of many rows and epochs it takes seconds."""
        settings = [getattr(plan, each.name) for each in fields(plan) if each.name not in ("lengths", "num_supervised")]
        rows = self.splits.train.fingerprint, self.splits.train.selection
        decides = [rows, settings, epochs, cache.code_of(planning, packing)]
        return cache.remembered("plan", decides, lambda: plan.needed(epochs), folder=self._folder)

    def description(self) -> dict[str, Any]:
        """What the data is: files, rows, tokens, and a fingerprint of all that decides the samples."""
        return {
            name: {
                "files": [str(file) for file in part.files],
                "fingerprint": part.fingerprint,
                "samples": len(part),
                "tokens": int(part.lengths.sum()),
                "supervised_tokens": int(part.num_supervised.sum()),
                "truncated": part.num_truncated,
                "quarantined": len(part.refused),
                "sources": [asdict(share) for share in self.splits.shares.get(name, [])],
                "faults": [asdict(count) for count in self.splits.counts if count.part == name],
            }
            for name, part in self.splits.parts.items()
        }

    def faults(self) -> list[dict[str, Any]]:
        """What was found to be wrong with rows: kind, severity, part, count, example of each."""
        return [asdict(count) for count in self.splits.counts]

    def write_quarantine(self, path: Path) -> None:
        """Write the rows that were left out, with the reasons, as JSON lines; nothing if there are none."""
        lines = [json.dumps(each, default=str) for part in self.splits.parts.values() for each in part.quarantine()]
        if lines:
            write_text(path, "\n".join(lines) + "\n")

    def state_dict(self) -> dict[str, Any]:
        """What decides the order of rows; part of every checkpoint."""
        return {
            # What was encoded, and not what encoded it: a release whose samples are the same ones goes on with a run.
            "data": self.splits.train.identity,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "group_steps": self.group_steps,
            "rows": len(self.splits.train),
            "split": self.splits.train.selection,
            "mixture": [share.rows for share in self.splits.shares["train"]],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse to go on in another order than the checkpoint was made in.

        Raises:
            UserError: the data, or what decides the order of their rows, has changed.
        """
        now = self.state_dict()
        changed = [
            f"data.{key}: the checkpoint was made with {old}, now it is {now[key]}; "
            "a resumed run goes on with the same rows in the same order"
            for key, old in state_dict.items()
            if now[key] != old
        ]
        if changed:
            raise UserError(changed)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Micro-batches of this rank. Lightning asks after it has restored a checkpoint's progress."""
        assert self.trainer is not None
        progress: Any = self.trainer.fit_loop
        done = progress.epoch_loop.batch_progress.current.ready
        # A checkpoint at the end of an epoch goes on with the next one.
        more, start = divmod(done, self.plan.num_micro_batches)
        epoch = progress.epoch_progress.current.processed + more
        sampler = _Epochs(self.plan, rank=self.trainer.global_rank, epoch=epoch, start=start)
        return self._loader(self.splits.train, sampler, packed=self.packing)

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """All validation rows once, spread over the ranks; an empty list where there are none."""
        return [] if self.splits.val is None else self._once(self.splits.val)

    def compute_ahead(
        self, function: Callable[[Batch], dict[str, Tensor]], *, key: str, each: Literal["token", "sample"]
    ) -> None:
        """Let ``Batch.given`` have what ``function`` gives of all samples to learn; see `ahead.compute`.

        Comes before the first loader.
        """
        assert self.trainer is not None
        strategy = self.trainer.strategy
        folder = self._folder / "ahead"
        for part in filter(None, (self.splits.train, self.splits.val)):
            once = part.once()
            batches = self._once(once)
            given = ahead.compute(once, batches, function, key=key, each=each, folder=folder, strategy=strategy)
            part.given = given.of

    def _once(self, part: Dataset) -> DataLoader[Batch]:
        """All rows of a part once, those of this rank."""
        assert self.trainer is not None
        return self.evaluation_loader(part, rank=self.trainer.global_rank, world_size=self.trainer.world_size)

    def evaluation_loader(self, part: Dataset, *, rank: int = 0, world_size: int = 1) -> DataLoader[Batch]:
        """All rows of a part once, not packed, those of one rank."""
        batches = evaluation_batches(
            part.widths,
            max_tokens=self.max_tokens // (1 + part.paired),
            pad_to_multiple=self.pad_to_multiple,
            world_size=world_size,
        )
        return self._loader(part, [MicroBatch(rows, 1) for rows in batches[rank::world_size]])

    def _loader(
        self, dataset: Dataset, sampler: Sampler[MicroBatch] | Sequence[MicroBatch], *, packed: bool = False
    ) -> DataLoader[Batch]:
        return DataLoader(
            _MicroBatches(dataset, pad_id=self._pad_id, pad_to_multiple=self.pad_to_multiple, packed=packed),
            sampler=sampler,
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )


def _as_it_is(batch: Any) -> Any:
    return batch


class _Epochs(Sampler[MicroBatch]):
    """This rank's micro-batches, epoch by epoch, the first epoch from ``start`` on."""

    def __init__(self, plan: Plan, *, rank: int, epoch: int, start: int) -> None:
        self._plan, self._rank = plan, rank
        self._epoch, self._start = epoch, {epoch: start}

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this at the start of every epoch."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[MicroBatch]:
        return self._plan.micro_batches(self._epoch, rank=self._rank, start=self._start.get(self._epoch, 0))

    def __len__(self) -> int:
        return self._plan.num_micro_batches


class _MicroBatches(TorchDataset[Batch]):
    """Samples by the micro-batch, one or several a row, padded on the right."""

    def __init__(self, dataset: Dataset, *, pad_id: int, pad_to_multiple: int, packed: bool = False) -> None:
        self._dataset, self._pad_id, self._multiple, self._is_packed = dataset, pad_id, pad_to_multiple, packed

    def __getitem__(self, micro_batch: MicroBatch) -> Batch:
        made = self._batch(micro_batch) if micro_batch.rows else self._filler(micro_batch)
        if self._dataset.given is not None:
            made.given = self._dataset.given(self._dataset.indices[[row for row in made.rows if row >= 0]].tolist())
        return made

    def _batch(self, micro_batch: MicroBatch) -> Batch:
        rows = [[each for sample in row for each in self._dataset.sample(sample).sequences] for row in micro_batch.rows]
        if not self._is_packed:
            rows = [[sequence] for row in rows for sequence in row]
        lengths = torch.tensor([sum(len(sequence.input_ids) for sequence in row) for row in rows])
        width = int(padded_lengths(lengths.numpy(), self._multiple).max())
        input_ids = torch.full((len(rows), width), self._pad_id)
        labels = torch.full((len(rows), width), IGNORE)
        position_ids = torch.arange(width).repeat(len(rows), 1)
        sequences = torch.zeros_like(input_ids)
        count = 0
        for number, row in enumerate(rows):
            start = 0
            for sequence in row:
                stop = start + len(sequence.input_ids)
                input_ids[number, start:stop] = torch.tensor(sequence.input_ids)
                # What begins a sequence is not predicted: before it stands another one.
                labels[number, start + 1 : stop] = torch.tensor(sequence.labels[1:])
                position_ids[number, start:] = torch.arange(width - start)
                sequences[number, start:stop] = count
                start, count = stop, count + 1
        return Batch.of(
            input_ids,
            labels,
            lengths,
            step_tokens=micro_batch.step_tokens,
            rows=[sample for row in micro_batch.rows for sample in row],
            position_ids=position_ids if self._is_packed else None,
            sequences=sequences,
        )

    def _filler(self, micro_batch: MicroBatch) -> Batch:
        """One row of padding with nothing to learn: its loss and its gradients are zero."""
        shape = (1, self._multiple)
        ids, labels = torch.full(shape, self._pad_id), torch.full(shape, IGNORE)
        lengths = torch.zeros(1, dtype=torch.int64)
        none = torch.zeros(shape, dtype=torch.int64)
        return Batch.of(ids, labels, lengths, step_tokens=micro_batch.step_tokens, rows=[-1], sequences=none)
