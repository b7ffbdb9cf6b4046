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
    distinct, inverse, copies = np.unique(contents, return_inverse=True, return_counts=True)
    ranked = np.argsort(_ranks(distinct, seed), kind="stable")
    side = np.zeros(len(distinct), np.int64)
    for number, count in enumerate(counts, start=1):
        left = count
        for content in ranked:  # seldom to its end: a list of all would be made for nothing
            if left == 0:
                break
            if side[content] == 0 and copies[content] <= left:
                side[content] = number
                left -= int(copies[content])
    return [np.flatnonzero(side[inverse] == number) for number in range(len(counts) + 1)]


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


def _ranks(contents: Words, seed: int) -> Words:
    """Words that look random and depend on the seed (SplitMix64: Steele, Lea and Flood, 2014)."""
    key = int.from_bytes(hashlib.blake2b(str(seed).encode(), digest_size=8).digest(), "little")
    mixed = contents ^ np.uint64(key)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))
