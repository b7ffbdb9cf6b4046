"""How many rows of each source are learned: all once, or in proportions, counts and repetitions that yaml names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt

from glm_lightning.data.dataset import Dataset
from glm_lightning.data.inputs import Amount, Inputs
from glm_lightning.data.splitting import Words, lowest, ranks

Indices = npt.NDArray[np.int64]


@final
@dataclass(frozen=True, slots=True)
class Share:
    """What a source gives to an epoch."""

    source: str
    available: int  # rows that it has
    rows: int  # rows of an epoch, repetitions counted
    share: float  # of all rows of an epoch

    def __str__(self) -> str:
        times = f", each {self.rows / self.available:.3g} times" if self.rows > self.available else ""
        return f"{self.share:.1%} {self.source} ({self.rows:,} of {self.available:,} rows{times})"


def mix(dataset: Dataset, inputs: Inputs, *, seed: int) -> tuple[Dataset, list[Share]]:
    """The rows of an epoch, and each source's share in them.

    Which rows of a source are taken, where it is not all, is decided by ``seed`` and the rows' contents alone, so that
    neither their order nor other sources change it. All samples of a row stay together.
    """
    first = dataset.first_of_rows
    source_of_row = _source_of_row(dataset, inputs)
    available = np.bincount(source_of_row, minlength=len(inputs.sources)).tolist()
    counts = targets(available, [source.amount for source in inputs.sources])
    shares = [
        Share(str(source.path), size, count, count / max(sum(counts), 1))
        for source, size, count in zip(inputs.sources, available, counts, strict=True)
    ]
    if counts == available:
        return dataset, shares
    contents, times = dataset.contents[first], np.zeros(len(first), dtype=np.int64)
    for number, count in enumerate(counts):
        mine = source_of_row == number
        times[mine] = repetitions(contents[mine], count=count, seed=seed)
    samples_of_row = np.diff(first, append=len(dataset))
    return dataset.subset(np.repeat(np.arange(len(dataset)), np.repeat(times, samples_of_row))), shares


def with_share(dataset: Dataset, inputs: Inputs) -> npt.NDArray[np.bool_]:
    """Which rows come from sources that are given a share: they are learned beside the others, and only that."""
    has_share = np.array([source.amount.share is not None for source in inputs.sources], dtype=bool)
    return has_share[_source_of_row(dataset, inputs)]


def _source_of_row(dataset: Dataset, inputs: Inputs) -> Indices:
    source_of_file = np.array([file.source for file in inputs.files], dtype=np.int64)
    return source_of_file[dataset.numbers("file")[dataset.first_of_rows]]


def targets(available: Sequence[int], amounts: Sequence[Amount]) -> list[int]:
    """Rows of each source in an epoch.

    Of sources with weights, the one that has the most rows for its weight is taken whole, and the others are repeated
    to their proportion: no row is lost. Where some have weights, those without any amount weigh 1. Sources with a share
    come to what all others are already.
    """
    weighted = any(amount.weight is not None for amount in amounts)
    weights = [_weight(amount) if weighted else None for amount in amounts]
    unit = max((size / w for size, w in zip(available, weights, strict=True) if w is not None), default=0.0)
    counts = []
    for size, amount, weight in zip(available, amounts, weights, strict=True):
        if amount.share is not None:
            count = 0
        elif weight is not None:
            count = round(weight * unit)
        elif amount.rows is not None:
            count = amount.rows
        else:
            count = round(size * (1 if amount.repeat is None else amount.repeat))
        counts.append(count if size else 0)
    shares = [
        amount.share if amount.share is not None and size else 0.0
        for size, amount in zip(available, amounts, strict=True)
    ]
    whole = sum(counts) / (1 - sum(shares))
    return [round(share * whole) if share else count for share, count in zip(shares, counts, strict=True)]


def repetitions(contents: Words, *, count: int, seed: int) -> Indices:
    """How many times each row is taken so that it is ``count`` in all; as often each, give or take one.

    Args:
        contents: (rows,) a word for each row, equal where the rows say the same.
        count: rows wanted.
        seed: decides with the contents which rows are taken once more.
    """
    whole, rest = divmod(count, max(len(contents), 1))
    times = np.full(len(contents), whole, dtype=np.int64)
    order = ranks(contents, f"mix {seed}")
    first = lowest(order, rest)
    times[first[np.argsort(order[first], kind="stable")[:rest]]] += 1
    return times


def _weight(amount: Amount) -> float | None:
    """The weight of a source among those with weights; None for one with another amount."""
    return 1.0 if amount == Amount() else amount.weight
