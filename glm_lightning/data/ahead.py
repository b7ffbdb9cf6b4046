"""What was computed of samples ahead of training: written once, found again by everything it depends on."""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from glm_lightning.data import cache
from glm_lightning.data.dataset import Dataset
from glm_lightning.data.progress import Bar, say
from glm_lightning.files import digest, read_json, write_json
from glm_lightning.types import Batch

ABOUT = "about.json"
_TYPES = {
    torch.int32: pa.int32(),
    torch.float16: pa.float16(),
    torch.float32: pa.float32(),
    torch.float64: pa.float64(),
}


@final
class Shard:
    """Writes the tensors of some samples to a file of their own, so that ranks need not wait for each other."""

    def __init__(self, folder: Path, number: int) -> None:
        self._file = folder / f"{number}.arrow"
        self._about = folder / ABOUT if number == 0 else None

    def write(self, batches: Iterable[tuple[Sequence[int], Sequence[int], Mapping[str, Tensor]]]) -> None:
        """Write batches of samples: their numbers, how many first entries of the tensors each has, and the tensors.

        There is one batch at least; one without samples tells types and shapes as well.
        """
        writer: Any = None
        shapes: dict[str, list[int]] = {}
        with pa.OSFile(str(self._file), "wb") as sink:
            for samples, counts, tensors in batches:
                record = _record(samples, counts, {name: tensor.cpu() for name, tensor in tensors.items()})
                if writer is None:
                    writer = pa.ipc.new_file(sink, record.schema)
                    shapes = {name: list(tensor.shape[1:]) for name, tensor in tensors.items()}
                writer.write_batch(record)
            writer.close()
        if self._about is not None:
            write_json(self._about, shapes)


def _record(samples: Sequence[int], counts: Sequence[int], tensors: Mapping[str, Tensor]) -> Any:
    columns = {"sample": pa.array(samples, pa.int32())}
    ends = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    for name, tensor in tensors.items():
        assert len(tensor) == ends[-1], name
        values = pa.array(tensor.reshape(-1).numpy(), _TYPES[tensor.dtype])
        columns[name] = pa.LargeListArray.from_arrays(ends * math.prod(tensor.shape[1:]), values)
    return pa.record_batch(columns)


@final
class Given:
    """Tensors by sample, from a folder of shards."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shapes: dict[str, list[int]] = read_json(folder / ABOUT)
        self._sources = [pa.memory_map(str(file)) for file in sorted(folder.glob("*.arrow"))]
        readers = [pa.ipc.open_file(source) for source in self._sources]
        self._batches = [reader.get_batch(i) for reader in readers for i in range(reader.num_record_batches)]
        self._ends = np.cumsum([batch.num_rows for batch in self._batches], dtype=np.int64)
        samples = np.concatenate([batch.column("sample").to_numpy() for batch in self._batches])
        self._order = np.argsort(samples, kind="stable")
        self._samples = samples[self._order]

    def __reduce__(self) -> tuple[Any, ...]:
        return Given, (self._folder,)

    def of(self, samples: Sequence[int]) -> dict[str, Tensor]:
        """The tensors of some samples, one behind the other, by name."""
        places = self._order[np.searchsorted(self._samples, np.asarray(samples, np.int64))]
        return {name: self._joined(name, places) for name in self._shapes}

    def _joined(self, name: str, places: Any) -> Tensor:
        parts = [self._values(name, int(place)) for place in places]
        # of no samples, too, the type must be the right one
        flat = np.concatenate([self._batches[0].column(name).values.to_numpy(zero_copy_only=False)[:0], *parts])
        return torch.from_numpy(flat).reshape(-1, *self._shapes[name])

    def _values(self, name: str, place: int) -> Any:
        number = int(np.searchsorted(self._ends, place, side="right"))
        batch = self._batches[number]
        row = place - int(self._ends[number]) + batch.num_rows
        return batch.column(name)[row].values.to_numpy(zero_copy_only=False)


Each = Literal["token", "sample"]
"""What the entries of a tensor are of."""


def compute(
    part: Dataset,
    batches: Sequence[Batch] | Iterable[Batch],
    function: Callable[[Batch], dict[str, Tensor]],
    *,
    key: str,
    each: Each,
    folder: Path,
    strategy: Any,
) -> Given:
    """What ``function`` gives for every sample of ``part``, computed by all ranks together, or found in ``folder``.

    Args:
        part: samples, none of them twice.
        batches: this rank's share of them; as many on every rank.
        function: gives tensors (n, ...) by name, n being the batch's supervised tokens or its samples.
        key: names everything but the samples that decides the values.
        each: what n counts.
        folder: of all that is computed ahead.
        strategy: Lightning's, which knows the ranks.
    """
    target = folder / digest(key, each, part.identity, part.selection)
    with contextlib.ExitStack() as stack:
        if strategy.is_global_zero:
            stack.enter_context(cache.turn(target.with_suffix(".lock")))
        if strategy.broadcast(target.is_dir()):
            return Given(target)
        unfinished = target.with_name(f".{target.name}.part")
        if strategy.is_global_zero:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
        strategy.barrier("ahead: folder")
        Shard(unfinished, strategy.global_rank).write(_computed(part, batches, function, each, strategy))
        strategy.barrier("ahead: shards")
        if strategy.is_global_zero:
            unfinished.rename(target)
            size = sum(file.stat().st_size for file in target.iterdir())
            say(f"data: {size / 2**20:,.1f} MiB computed ahead of {len(part):,} samples, kept in {target}")
        strategy.barrier("ahead: done")
    return Given(target)


def _computed(
    part: Dataset,
    batches: Iterable[Batch],
    function: Callable[[Batch], dict[str, Tensor]],
    each: Each,
    strategy: Any,
) -> Iterator[tuple[Sequence[int], Sequence[int], dict[str, Tensor]]]:
    counts, done = part.num_supervised, 0
    with Bar("computing ahead", total=len(part)) as bar:
        for batch in batches:
            tensors = function(strategy.batch_to_device(batch))
            rows = [row for row in batch.rows if row >= 0]
            sizes = counts[rows].tolist() if each == "token" else [1] * len(rows)
            yield part.indices[rows].tolist(), sizes, tensors
            done += len(rows) * strategy.world_size
            bar.show(done)
