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
        raise UserError(f"{key}={size}: that is {count} of {num_rows} rows; leave at least one on each side")
    return count


def seeded(digests: Sequence[bytes], counts: Sequence[int], *, seed: int) -> list[Indices]:
    """Indices of the rest, and of one group for each of ``counts``, in the order of the rows.

    Contents are ranked by a hash of ``seed`` and the content alone, so neither the order of the rows nor other rows
    change a rank. All copies of a content go to the same side; a content with more copies than are still wanted is
    passed over.
    """
    copies: dict[bytes, list[int]] = {}
    for row, content in enumerate(digests):
        copies.setdefault(content, []).append(row)
    ranked = sorted(copies, key=lambda content: _rank(content, seed))
    groups = []
    for count in counts:
        group: list[int] = []
        for content in ranked:
            if len(group) + len(copies[content]) <= count:
                group += copies[content]
        taken = {digests[row] for row in group}
        ranked = [content for content in ranked if content not in taken]
        groups.append(_sorted(group))
    return [_sorted([row for content in ranked for row in copies[content]]), *groups]


def last(digests: Sequence[bytes], counts: Sequence[int]) -> list[Indices]:
    """Indices of the rest, and of one group for each of ``counts``: the last rows for the last group, and so on back.

    Of the rest, rows with the content of a row in a group are left out.
    """
    groups, end = [], len(digests)
    for count in reversed(counts):
        groups.append(np.arange(end - count, end, dtype=np.int64))
        end -= count
    taken = set(digests[end:])
    rest = [row for row, content in enumerate(digests[:end]) if content not in taken]
    return [_sorted(rest), *reversed(groups)]


def _rank(content: bytes, seed: int) -> bytes:
    return hashlib.blake2b(content, digest_size=16, key=str(seed).encode()).digest()


def _sorted(rows: Sequence[int]) -> Indices:
    return np.asarray(sorted(rows), dtype=np.int64)
