"""From what yaml says about the data to three encoded data sets, or to one list of everything that is wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from glm_lightning.data import cache, splitting
from glm_lightning.data.dataset import Dataset
from glm_lightning.data.dataset import load as load_dataset
from glm_lightning.data.encoding import Encoder
from glm_lightning.data.formats import Format
from glm_lightning.data.reading import expand
from glm_lightning.templates import Template
from glm_lightning.tokenizers import Tokenizer
from glm_lightning.types import UserError

S = TypeVar("S")
T = TypeVar("T")

Source = str | Path | Sequence[str | Path]
"""A file, a folder, a glob, or several of these."""

Part = Source | int | float | None
"""Rows of their own, a count or a share of the training rows, or none."""


@dataclass(frozen=True, slots=True)
class Splits:
    """The data of a run; ``notices`` are what a user should know about it, a sentence each."""

    train: Dataset
    val: Dataset | None
    test: Dataset | None
    notices: list[str]

    @property
    def parts(self) -> dict[str, Dataset]:
        """The data sets that there are, by name."""
        parts = {"train": self.train, "val": self.val, "test": self.test}
        return {name: part for name, part in parts.items() if part is not None}


def load_splits(
    *,
    train: Source,
    val: Part,
    test: Part,
    format: Format,
    split: splitting.Rule,
    seed: int,
    max_length: int,
    cache_dir: str | Path | None,
    tokenizer: Tokenizer,
    template: Template,
) -> Splits:
    """Read, check, encode and split; no model is needed.

    Args:
        train: files of the training rows.
        val: files of the validation rows, or how many (int) or what share (float) of the training rows to take.
        test: the same for the test rows.
        format: reads a row.
        split: rule by which rows are taken from the training rows, see `splitting`.
        seed: of the rule ``seeded``.
        max_length: tokens a sample may have; longer ones are shortened.
        cache_dir: folder of encoded data; None for the default.
        tokenizer: see `Encoder`.
        template: see `Encoder`.

    Raises:
        UserError: everything that is wrong with all the files.
    """
    encoder = Encoder(tokenizer=tokenizer, template=template, max_length=max_length)
    folder = Path(cache_dir).expanduser() if cache_dir else cache.default_folder()
    files = find_files({"train": train, "val": val, "test": test})
    loaded = _all(files, lambda _, paths: load_dataset(paths, format=format, encoder=encoder, folder=folder))
    sizes = {name: size for name, size in (("val", val), ("test", test)) if isinstance(size, int | float)}
    parts, dropped = _split(loaded["train"], sizes, split=split, seed=seed)
    splits = Splits(
        parts["train"], loaded.get("val", parts.get("val")), loaded.get("test", parts.get("test")), notices=[]
    )
    _check_supervised(splits)
    splits.notices.extend(_notices(splits, dropped=dropped, max_length=max_length))
    return splits


def find_files(sources: Mapping[str, Part]) -> dict[str, list[Path]]:
    """The files of each part that has files of its own.

    Raises:
        UserError: everything that is not there, or is in two parts.
    """
    given = {name: s for name, s in sources.items() if s is not None and not isinstance(s, int | float)}
    files = _all(given, lambda name, source: expand(source, key=f"data.{name}"))
    seen: dict[Path, str] = {}
    problems = []
    for name, paths in files.items():
        for path in paths:
            if (other := seen.setdefault(path.resolve(), name)) != name:
                problems.append(f"data.{name}: {path} is also in data.{other}; give each part files of its own")
    if problems:
        raise UserError(problems)
    return files


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
    whole: Dataset, sizes: dict[str, int | float], *, split: splitting.Rule, seed: int
) -> tuple[dict[str, Dataset], int]:
    """The parts taken from the training rows, and how many rows were dropped. All samples of a row stay together."""
    rows, first = np.unique(whole.rows, return_index=True)
    counts = _all(sizes, lambda name, size: splitting.number_of_rows(size, key=f"data.{name}", num_rows=len(rows)))
    if sum(counts.values()) >= max(len(rows), 1):
        raise UserError(f"data.val and data.test take all {len(rows)} training rows; leave some for training")
    digests = [whole.digest(int(i)) for i in first]
    wanted = list(counts.values())
    groups = splitting.last(digests, wanted) if split == "last" else splitting.seeded(digests, wanted, seed=seed)
    parts = {
        name: whole.subset(np.flatnonzero(np.isin(whole.rows, rows[group])))
        for name, group in zip(("train", *counts), groups, strict=True)
    }
    return parts, len(rows) - sum(map(len, groups))


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
    contents = {name: _contents(part) for name, part in splits.parts.items()}
    for name, part in splits.parts.items():
        if part.num_truncated:
            notices.append(f"{name}: {part.num_truncated:,} of {len(part):,} samples shortened to {max_length} tokens")
        if copies := part.num_rows - len(contents[name]):
            notices.append(f"{name}: {copies:,} of {part.num_rows:,} rows are exact copies of another")
        shared = sorted(index for content, index in contents[name].items() if content in contents["train"])
        if shared and name != "train":
            notices.append(
                f"{name}: {len(shared):,} of {len(contents[name]):,} contents stand in train too, first "
                f"{part.origin(shared[0])}: scores on them say nothing about new questions"
            )
    return notices


def _contents(part: Dataset) -> dict[bytes, int]:
    """Each content with the first sample of it."""
    contents: dict[bytes, int] = {}
    for index in range(len(part)):
        contents.setdefault(part.digest(index), index)
    return contents
