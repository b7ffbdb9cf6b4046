"""From what yaml says about the data to three encoded data sets, or to one list of everything that is wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from glm_lightning.data import cache, comparison, report, splitting
from glm_lightning.data.dataset import Dataset
from glm_lightning.data.dataset import load as load_dataset
from glm_lightning.data.encoding import Encoder
from glm_lightning.data.formats import RowKind
from glm_lightning.data.gate import Gate, in_words
from glm_lightning.data.inputs import AUTO, Inputs, Source, sources_of
from glm_lightning.data.mixing import Share, mix, with_share
from glm_lightning.data.report import Count
from glm_lightning.templates import Template
from glm_lightning.tokenizers import Tokenizer
from glm_lightning.types import Conversation, Item, Preference, UserError

S = TypeVar("S")
T = TypeVar("T")

Entry = str | Path | Mapping[str, Any]
"""A file, a folder, a glob or a hub's name, or one of these under ``path`` with more to it; see `sources_of`."""

Kinds = tuple[type[Item], ...]
"""What rows may hold."""

_ASKED: Kinds = (Conversation, Preference)
"""What has a question that can be asked."""

Part = Entry | Sequence[Entry] | int | float | None
"""Rows of their own, a count or a share of the training rows, or none."""


@dataclass(frozen=True, slots=True)
class Splits:
    """The data of a run.

    ``notices`` are what a user should know about it, a sentence each, those on how it was ``read`` among them,
    ``counts`` its faults, ``shares`` what each source gives to an epoch, by part.
    """

    train: Dataset
    val: Dataset | None
    test: Dataset | None
    read: list[str]
    notices: list[str]
    counts: list[Count]
    shares: dict[str, list[Share]]

    def fault_table(self) -> str:
        """The faults as a Markdown table."""
        return report.table(self.counts)

    @property
    def parts(self) -> dict[str, Dataset]:
        """The data sets that there are, by name."""
        parts = {"train": self.train, "val": self.val, "test": self.test}
        return {name: part for name, part in parts.items() if part is not None}


def load_splits(
    *,
    train: Entry | Sequence[Entry],
    val: Part,
    test: Part,
    val_required: bool = True,
    format: str | RowKind[Any] = AUTO,
    encoding: str | None = None,
    split: splitting.Rule,
    seed: int,
    max_length: int,
    cache_dir: str | Path | None,
    gate: Gate,
    tokenizer: Tokenizer,
    template: Template,
    learned: Kinds = (Conversation,),
) -> Splits:
    """Read, check, encode and split; no model is needed.

    Args:
        train: sources of the training rows.
        val: sources of the validation rows, or how many (int) or what share (float) of the training rows to take.
        test: the same for the test rows.
        val_required: whether it is an error, and not only a notice, if no validation rows can be taken.
        format: how a row is read, unless a source says otherwise; ``auto`` recognises it.
        encoding: of texts without a byte order mark, unless a source says otherwise; None is UTF-8.
        split: rule by which rows are taken from the training rows, see `splitting`.
        seed: of the rule ``seeded``.
        max_length: tokens a sample may have; longer ones are shortened.
        cache_dir: folder of encoded data; None for the default.
        gate: what happens to bad rows.
        tokenizer: see `Encoder`.
        template: see `Encoder`.
        learned: what training and validation rows may hold; test rows hold questions with their answers.

    Raises:
        UserError: everything that is wrong with all the files.
    """
    encoder = Encoder(tokenizer=tokenizer, template=template, max_length=max_length)
    folder = Path(cache_dir).expanduser() if cache_dir else cache.default_folder()
    inputs = _inputs(find({"train": train, "val": val, "test": test}, format=format, encoding=encoding), learned)
    if isinstance(test, int | float) and any(file.format.holds not in _ASKED for file in inputs["train"].files):
        raise UserError(f"data.test is {test}: takes rows of data.train, and texts ask nothing; set data.test=null")
    loaded = _all(
        inputs, lambda _, given: load_dataset(given.paths, format=given, encoder=encoder, folder=folder, gate=gate)
    )
    sizes = {name: size for name, size in (("val", val), ("test", test)) if isinstance(size, int | float)}
    apart = with_share(loaded["train"], inputs["train"])
    why_no_val = None
    try:
        parts, dropped = _split(loaded["train"], sizes, apart=apart, split=split, seed=seed)
    except UserError as error:
        if val_required or "val" not in sizes:
            raise
        why_no_val = str(error)
        sizes.pop("val")
        parts, dropped = _split(loaded["train"], sizes, apart=apart, split=split, seed=seed)
    parts["train"].refused = loaded["train"].refused
    parts |= {name: part for name, part in loaded.items() if name != "train"}
    parts, shared = _judged({name: parts[name] for name in ("train", "val", "test") if name in parts}, gate, folder)
    counts = report.counts(parts, shared, gate=gate)
    mixed = {name: mix(parts[name], given, seed=seed) for name, given in inputs.items()}
    for name, (part, _) in mixed.items():
        part.refused = parts[name].refused
    parts |= {name: part for name, (part, _) in mixed.items()}
    shares = {name: each for name, (_, each) in mixed.items()}
    read = _sources(inputs, shares)
    splits = Splits(parts["train"], parts.get("val"), parts.get("test"), read, [], counts, shares)
    _check_supervised(splits)
    if why_no_val:
        splits.notices.append(f"no rows are set aside for validation: {why_no_val}")
    splits.notices.extend([*read, *_notices(splits, dropped=dropped, max_length=max_length)])
    return splits


def _judged(parts: dict[str, Dataset], gate: Gate, folder: Path) -> tuple[dict[str, Dataset], list[comparison.Shared]]:
    """The parts without rows that must not say what others say, and what the rest shares.

    Raises:
        UserError: there are such rows, as ``gate`` has it.
    """
    shared = comparison.compare(parts, folder=folder)
    found = comparison.surplus(parts, shared, gate=gate)
    refused = _all(
        found, lambda name, faults: gate.admit(faults, files=parts[name].files, num_rows=parts[name].num_rows)
    )
    if not any(refused.values()):
        return parts, shared
    parts = {name: part.without(refused.get(name, [])) for name, part in parts.items()}
    return parts, comparison.compare(parts, folder=folder)


def find(
    parts: Mapping[str, Part], *, format: str | RowKind[Any] = AUTO, encoding: str | None = None
) -> dict[str, list[Source]]:
    """The sources of each part that has rows of its own. Nothing is read or downloaded.

    Raises:
        UserError: everything that is not there, or is in two parts.
    """
    given = {name: part for name, part in parts.items() if part is not None and not isinstance(part, int | float)}
    sources = _all(given, lambda name, part: sources_of(part, key=f"data.{name}", format=format, encoding=encoding))
    found = _all(sources, lambda _, every: [path for source in every for path in source.found()])
    seen: dict[Path, str] = {}
    problems = []
    for name, paths in found.items():
        for path in paths:
            if (other := seen.setdefault(path.resolve(), name)) != name:
                problems.append(f"data.{name}: {path} is also in data.{other}; give each part files of its own")
    if problems:
        raise UserError(problems)
    return sources


def _inputs(sources: dict[str, list[Source]], learned: Kinds) -> dict[str, Inputs]:
    inputs = _all(sources, lambda _, every: Inputs.of(every))
    _all(
        inputs,
        lambda name, given: given.check_kind(_ASKED if name == "test" else learned, key=f"data.{name}"),
    )
    return inputs


def _sources(inputs: Mapping[str, Inputs], shares: Mapping[str, Sequence[Share]]) -> list[str]:
    """How rows were recognised, and what each of several sources gives."""
    notices = []
    for name, given in inputs.items():
        if found := given.recognised():
            what = ", ".join(f"{format} ({count} files)" if count > 1 else format for format, count in found.items())
            notices.append(f"{name}: read as {what}, recognised from the first rows; set data.format to fix it")
        for source in given.sources:
            if over := source.passed_over():
                names = ", ".join(each.name for each in over[:3]) + (", ..." if len(over) > 3 else "")
                notices.append(f"{name}: {len(over):,} file(s) of {source.path} are not read, by their names: {names}")
        if given.repeated:
            first, others = given.repeated[0], len(given.repeated) - 1
            which = f"{first} and {others:,} other files are" if others else f"{first} is"
            notices.append(f"{name}: {which} named again and read once; more often is {{path: {first}, repeat: 2}}")
        if len(shares[name]) > 1 or any(share.rows != share.available for share in shares[name]):
            notices.append(f"{name}: an epoch is {'; '.join(map(str, shares[name]))}")
    return notices


def _all(values: dict[str, S], function: Callable[[str, S], T]) -> dict[str, T]:
    """``function`` of each name and value; the problems of all, if there are any."""
    results: dict[str, T] = {}
    problems: list[str] = []
    for name, value in values.items():
        try:
            results[name] = function(name, value)
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(problems)
    return results


def _split(
    whole: Dataset, sizes: dict[str, int | float], *, apart: NDArray[np.bool_], split: splitting.Rule, seed: int
) -> tuple[dict[str, Dataset], int]:
    """The parts taken from the training rows, and how many rows were dropped. All samples of a row stay together.

    Rows that are ``apart`` are for training only.
    """
    own = np.flatnonzero(~apart)
    first = whole.first_of_rows[own]
    counts = _all(sizes, lambda name, size: splitting.number_of_rows(size, key=f"data.{name}", num_rows=len(first)))
    if not counts:
        return {"train": whole}, 0
    if sum(counts.values()) >= max(len(first), 1):
        raise UserError(f"data.val and data.test take all {len(first)} training rows; leave some for training")
    contents, wanted = whole.contents[first], list(counts.values())
    groups = splitting.last(contents, wanted) if split == "last" else splitting.seeded(contents, wanted, seed=seed)
    if empty := [name for name, group in zip(("train", *counts), groups, strict=True) if not len(group)]:
        raise UserError(
            [
                f"data.{name}: gets no rows: the {len(first):,} training rows say only {len(np.unique(contents)):,} "
                "different things, and copies stay on one side; give data.val and data.test larger counts, files, null"
                for name in empty
            ]
        )
    rows = [own[group] for group in groups]
    rows[0] = np.sort(np.concatenate([rows[0], np.flatnonzero(apart)]))
    parts = {name: whole.of_rows(group) for name, group in zip(("train", *counts), rows, strict=True)}
    return parts, len(first) - sum(map(len, groups))


def _check_supervised(splits: Splits) -> None:
    empty = [name for name, part in splits.parts.items() if not part.num_supervised.any()]
    if empty:
        raise UserError(
            [
                f"data.{name}: no token of {len(splits.parts[name])} samples is learned; give rows with answers"
                for name in empty
            ]
        )


def _notices(splits: Splits, *, dropped: int, max_length: int) -> list[str]:
    notices = []
    if splits.val is None:
        notices.append("no validation rows: overfitting is not seen, and the last checkpoint counts as the best")
    if dropped:
        notices.append(f"train: {dropped:,} rows dropped, whose content is also among the last rows taken from them")
    for name, part in splits.parts.items():
        if part.num_truncated:
            notices.append(f"{name}: {part.num_truncated:,} of {len(part):,} samples shortened to {max_length} tokens")
        if part.refused:
            notices.append(f"{name}: {in_words(part.refused)} left out: see quarantine.jsonl in the run's folder")
    return notices + [str(count) for count in splits.counts if count.severity == "notice"]
