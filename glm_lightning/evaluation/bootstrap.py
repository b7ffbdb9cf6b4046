"""How far scores may be off for no other reason than which rows were asked.

The rows are drawn again with replacement, and every score is taken anew from the sums of the drawn rows: a mean as well
as a figure of the whole corpus (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13; for BLEU
Koehn, Statistical Significance Tests for Machine Translation Evaluation, 2004). Equal seeds draw equal rows, so that
models which were asked the same are compared row by row.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from glm_lightning.metrics import Metric, Numbers
from glm_lightning.types import Message

LEVEL = 0.95
"""How much of the drawn scores an interval holds."""

_BLOCK = 1 << 22
"""Drawn rows held at once."""


@dataclass(frozen=True, slots=True)
class Score:
    """A score of all rows, what it is of each alone, (rows,), and of drawn ones, (resamples,)."""

    value: float
    each: Numbers
    drawn: Numbers

    @property
    def interval(self) -> tuple[float, float]:
        """Where `LEVEL` of the drawn scores lie; not a number where none is one."""
        return _interval(self.drawn)

    def difference(self, other: Score) -> tuple[float, float]:
        """The same of the differences to ``other``, of the same rows: what is real does not hold 0."""
        return _interval(self.drawn - other.drawn)


def scores(
    metrics: Sequence[Metric],
    predictions: Sequence[Message],
    references: Sequence[Message],
    *,
    resamples: int,
    seed: int,
) -> dict[str, Score]:
    """The scores of every metric by name."""
    found: dict[str, Score] = {}
    for metric in metrics:
        rows, values = metric.statistics(predictions, references)
        each, drawn = values(rows), values(_sums(rows, resamples=resamples, seed=seed))
        found |= {name: Score(float(value), each[name], drawn[name]) for name, value in values(rows.sum(0)).items()}
    return found


def _sums(rows: Numbers, *, resamples: int, seed: int) -> Numbers:
    """Sums over rows drawn with replacement: how often each is drawn follows a multinomial law."""
    rng, count = np.random.default_rng(seed), len(rows)
    block = max(1, _BLOCK // count)
    sizes = [min(block, resamples - start) for start in range(0, resamples, block)]
    shares = np.full(count, 1 / count)
    drawn = [rng.multinomial(count, shares, size=size).astype(np.float64) @ rows for size in sizes]
    return np.concatenate([*drawn, np.empty((0, rows.shape[1]))])


def _interval(drawn: Numbers) -> tuple[float, float]:
    with warnings.catch_warnings():
        # All of them may be without value: a class that no row has.
        warnings.simplefilter("ignore", RuntimeWarning)
        low, high = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if len(drawn) else (np.nan, np.nan)
    return float(low), float(high)
