"""Rows for validation and test taken from the training rows, so that no content falls on two sides."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from glm_lightning.types import UserError

Rule = Literal["seeded", "last"]
Indices = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

_MARGIN = 1024
"""More rows that are looked at than twice what is wanted, for copies that do not fit."""


def number_of_rows(size: int | float, *, key: str, num_rows: int) -> int:
    """A count, or a share of ``num_rows``, as a count.

    Raises:
        UserError: there would be nothing left on one side.
    """
    count = round(size * num_rows) if isinstance(size, float) else size
    if isinstance(size, float) and not 0 < size < 1:
        raise UserError(
            f"{key}={size}: a share of the training rows lies between 0 and 1; give a whole number for a count"
        )
    if not 0 < count < num_rows:
        raise UserError(
            f"{key}={size}: that is {count} of {num_rows} rows; leave at least one on each side, or say {key}=null"
        )
    return count


def seeded(contents: Words, counts: Sequence[int], *, seed: int) -> list[Indices]:
    """Indices of the rest, and of one group for each of ``counts``, in the order of the rows.

    Contents are ranked by a hash of ``seed`` and the content alone, so neither the order of the rows nor other rows
    change a rank. All copies of a content go to the same side; a content with more copies than are still wanted is
    passed over.

    Args:
        contents: (rows,) a word for each row, equal where the rows say the same.
        counts: rows of each group.
        seed: of the ranks.
    """
    order = ranks(contents, f"{seed}")
    side = np.zeros(len(contents), np.int64)
    # Few are taken, and those of the lowest ranks: not all millions need be sorted for it.
    looked_at = min(2 * sum(counts) + _MARGIN, len(order))
    while True:
        first = lowest(order, looked_at)
        taken, complete = _dealt(order[first], counts)
        if complete or looked_at == len(order):
            side[first] = taken
            return [np.flatnonzero(side == number) for number in range(len(counts) + 1)]
        looked_at = min(2 * looked_at, len(order))


def _dealt(order: Words, counts: Sequence[int]) -> tuple[Indices, bool]:
    """The group (1, 2, ...; 0: none) of each row by the ranks of their contents, and whether every group is full."""
    distinct, inverse, copies = np.unique(order, return_inverse=True, return_counts=True)
    side, complete = np.zeros(len(distinct), np.int64), True
    for number, left in enumerate(counts, start=1):
        free = np.flatnonzero(side == 0)
        while left and len(free):
            free = free[copies[free] <= left]
            fit = free[np.cumsum(copies[free]) <= left]
            side[fit] = number
            left -= int(copies[fit].sum())
            free = free[len(fit) + 1 :]  # the next one has more copies than are still wanted
        complete = complete and left == 0
    return side[inverse], complete


def last(contents: Words, counts: Sequence[int]) -> list[Indices]:
    """Indices of the rest, and of one group for each of ``counts``: the last rows for the last group, and so on back.

    Of the rest, rows with the content of a row in a group are left out.
    """
    groups, end = [], len(contents)
    for count in reversed(counts):
        groups.append(np.arange(end - count, end, dtype=np.int64))
        end -= count
    rest = np.flatnonzero(~np.isin(contents[:end], contents[end:]))
    return [rest, *reversed(groups)]


def lowest(order: Words, count: int) -> Indices:
    """Indices of the ``count`` lowest ranks, and of all that equal the last of them."""
    return np.flatnonzero(order <= np.partition(order, count - 1)[count - 1]) if count else np.empty(0, np.int64)


def ranks(contents: Words, key: str) -> Words:
    """Words that look random, depend on the key, and are equal for equal contents alone (SplitMix64: Steele, Lea and
    Flood, 2014).
    """
    number = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
    mixed = contents ^ np.uint64(number)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))
