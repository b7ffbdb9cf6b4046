"""What rows share with others: exact copies by digest, near copies by MinHash.

Two rows are near copies if at least `THRESHOLD` of the pieces of five characters that either of them has are in both
(Jaccard's measure, estimated from 64 minima, of which one byte each is kept: Li and König, "b-Bit Minwise Hashing",
2010). Candidates are rows that agree in one of eight bands of eight minima: 92 % of the pairs with a measure of 0.85
and 99 % of those with 0.9 become candidates.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import rensa

from glm_lightning.data.judging.base import Texts
from glm_lightning.data.judging.kinds import Kind

DUPLICATE = Kind("duplicate", "notice", "are exact copies of another")
NEAR_DUPLICATE = Kind("near_duplicate", "notice", "say nearly what another says")
LEAK = Kind("leak", "notice", "stand in {other} too: scores on them say nothing about new questions")
NEAR_LEAK = Kind("near_leak", "notice", "say nearly what a row of {other} says")
BETWEEN_ROWS = (DUPLICATE, NEAR_DUPLICATE, LEAK, NEAR_LEAK)

THRESHOLD = 0.8
NUM_MINIMA = 64
_BAND = 8
_WIDTH = 5
_SEED = 1
_PAIRS = 1 << 16  # compared at once
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio, odd: Knuth's multiplicative hashing

Labels = npt.NDArray[np.int64]
Sketches = npt.NDArray[np.uint8]


def pieces(texts: Texts) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Hashes of each row's pieces (pieces,), and where each row's begin, with the end behind the last (rows + 1,)."""
    if not len(texts.starts):
        return np.empty(0, np.uint64), np.zeros(1, np.uint64)
    codes = np.concatenate([texts.codes.astype(np.uint64) + np.uint64(1), np.zeros(_WIDTH, np.uint64)])
    hashes = codes[: len(texts.codes) + 1].copy()  # one more: the piece of an empty last row
    for offset in range(1, _WIDTH):
        hashes = hashes * _MULTIPLIER + codes[offset : offset + len(hashes)]
    # texts shorter than a piece are one piece, which must not reach into the next row
    for row in np.flatnonzero(texts.stops - texts.starts < _WIDTH):
        hashes[texts.starts[row]] = _hash_of_short(codes[texts.starts[row] : texts.stops[row]])
    hashes ^= hashes >> np.uint64(29)
    hashes *= _MULTIPLIER
    stops = np.maximum(texts.stops - _WIDTH + 1, texts.starts + 1)
    inside = np.zeros(len(hashes) + 1, np.int8)
    np.add.at(inside, texts.starts, 1)
    np.add.at(inside, stops, -1)
    offsets = np.concatenate([[0], np.cumsum(stops - texts.starts)]).astype(np.uint64)
    return hashes[np.cumsum(inside[:-1]).astype(bool)], offsets


def minima(hashes: npt.NDArray[np.uint64], offsets: npt.NDArray[np.uint64]) -> Sketches:
    """The lowest bytes of 64 minima over each row's pieces, see `pieces`. Shape (rows, 64). Uses threads."""
    if len(offsets) == 1:
        return np.empty((0, NUM_MINIMA), np.uint8)
    matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets, NUM_MINIMA, _SEED)
    return np.asarray(matrix.to_rows(), dtype=np.uint32).astype(np.uint8)


def _hash_of_short(codes: npt.NDArray[np.uint64]) -> np.uint64:
    value = 0
    for code in [*codes.tolist(), *[0] * (_WIDTH - len(codes))]:
        value = (value * int(_MULTIPLIER) + code) % 2**64
    return np.uint64(value)


def exact_groups(digests: npt.NDArray[np.uint64]) -> Labels:
    """For each row the first row with the same digest. Shape (rows,)."""
    _, first, inverse = np.unique(digests, return_index=True, return_inverse=True)
    return np.asarray(first[inverse], dtype=np.int64)


def near_groups(rows: Sketches, *, threshold: float = THRESHOLD) -> Labels:
    """For each row the first row of its group: near copies, and their near copies. Shape (rows,)."""
    labels = np.arange(len(rows), dtype=np.int64)
    for start in range(0, NUM_MINIMA, _BAND):
        keys = np.ascontiguousarray(rows[:, start : start + _BAND]).view(np.uint64)[:, 0]
        order = np.argsort(keys, kind="stable")
        same = np.flatnonzero(keys[order[1:]] == keys[order[:-1]])
        left, right = order[same], order[same + 1]
        alike = np.concatenate([_alike(rows, left[i : i + _PAIRS], right[i : i + _PAIRS], threshold)
                                for i in range(0, max(len(left), 1), _PAIRS)])  # fmt: skip
        labels = _joined(labels, left[alike], right[alike])
    return labels


def _alike(rows: Sketches, left: Labels, right: Labels, threshold: float) -> npt.NDArray[np.bool_]:
    by_chance = 1 / 256  # bytes of unlike minima that agree
    agreeing = (rows[left] == rows[right]).mean(1)
    return np.asarray((agreeing - by_chance) / (1 - by_chance) >= threshold, dtype=np.bool_)


def _joined(labels: Labels, left: Labels, right: Labels) -> Labels:
    """Labels after joining pairs: smallest labels spread until nothing changes."""
    while len(left):
        lower = np.minimum(labels[left], labels[right])
        before = labels.copy()
        np.minimum.at(labels, labels[left], lower)
        np.minimum.at(labels, labels[right], lower)
        np.minimum.at(labels, left, lower)
        np.minimum.at(labels, right, lower)
        while (labels[labels] != labels).any():
            labels = labels[labels]
        if (before == labels).all():
            break
    return labels
