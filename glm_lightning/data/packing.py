"""Several samples in one row: which share a row, so that little of it stays empty."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_BLOCK = 1 << 16
"""Steps times samples that are looked at together."""


def first_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Samples in rows of at most ``capacity`` positions: longest first, each into the first row with room for it.

    Takes at most 11/9 of the fewest rows possible, and 2/3 of one (Dosa 2007).
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for sample in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[sample]
        found = next((row for row, left in enumerate(room) if left >= length), None)
        if found is None:
            rows.append([sample])
            room.append(capacity - length)
        else:
            rows[found].append(sample)
            room[found] -= length
    return rows


def most_rows(descending: NDArray[np.int32], capacity: int) -> int:
    """Rows that `first_fit` takes for the step that takes most, of many steps at once.

    Args:
        descending: lengths of each step's samples (steps, samples), longest first.
        capacity: positions of a row; no sample has more.
    """
    block = max(1, _BLOCK // descending.shape[1])
    return max(_most_rows(descending[i : i + block], capacity) for i in range(0, len(descending), block))


def _most_rows(descending: NDArray[np.int32], capacity: int) -> int:
    steps, most = np.arange(len(descending)), 0
    room = np.full(descending.shape, capacity)
    for lengths in descending.T:
        # behind the rows in use stands at least one empty one, which every sample fits into
        row = (room[:, : most + 1] >= lengths[:, None]).argmax(1)
        room[steps, row] -= lengths
        most = max(most, int(row.max()) + 1)
    return most


def balanced(lengths: Sequence[int], num_rows: int) -> list[list[int]]:
    """Samples in ``num_rows`` rows of like length: longest first, each into the shortest row so far (Graham 1969)."""
    rows: list[list[int]] = [[] for _ in range(num_rows)]
    heap = [(0, row) for row in range(num_rows)]
    for sample in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        filled, row = heapq.heappop(heap)
        rows[row].append(sample)
        heapq.heappush(heap, (filled + lengths[sample], row))
    return rows


def pack(lengths: Sequence[int], capacity: int, *, parts: int) -> list[list[int]]:
    """Samples in rows of at most ``capacity``, longest row first; as many rows as ``parts`` can share equally.

    Rows of like length leave little padding. Where evening them out would overfill one, they stay as they fit.
    """
    fewest = first_fit(lengths, capacity)
    even = balanced(lengths, min(-(-len(fewest) // parts) * parts, len(lengths)))
    fits = all(sum(lengths[i] for i in row) <= capacity for row in even)
    return sorted(even if fits else fewest, key=lambda row: -sum(lengths[i] for i in row))
