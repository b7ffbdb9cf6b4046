"""How good answers are, as pure functions of what was said.

A metric is a module of this folder with ``statistics(predictions, references) -> Statistics``: what a score is made of,
row by row, so that the same rows can be drawn again and again for its confidence interval. Higher is better. Adding one
is adding its file. One that says little about most data has ``fits(references)`` as well: it is taken by itself only
where that is true.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from glm_lightning.types import Message, UserError

Numbers = NDArray[np.float64]


class Statistics(NamedTuple):
    """A score as a function of sums over rows: a mean, or a figure of the whole corpus such as BLEU."""

    rows: Numbers
    """What is added up. Shape (rows, columns)."""

    values: Callable[[Numbers], dict[str, Numbers]]
    """Sums (..., columns) to scores (...) by name; not a number where no row has a say."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric of this folder."""

    name: str
    statistics: Callable[[Sequence[Message], Sequence[Message]], Statistics]
    fits: Callable[[Sequence[Message]], bool]

    def score(self, predictions: Sequence[Message], references: Sequence[Message]) -> dict[str, float]:
        """Scores of all answers by name."""
        rows, values = self.statistics(predictions, references)
        return {name: float(value) for name, value in values(rows.sum(0)).items()}


def names() -> list[str]:
    """The metrics there are, by the name of their file."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def find(name: str) -> Metric:
    """The metric called ``name``.

    Raises:
        UserError: there is none of that name.
    """
    if name not in names():
        nearest = get_close_matches(name, names(), n=1) or names()[:1]
        known = ", ".join(names())
        raise UserError(f"metrics: {name!r} is not a metric. There are: {known}. Did you mean {nearest[0]!r}?")
    module: Any = importlib.import_module(f"{__name__}.{name}")
    return Metric(name, module.statistics, getattr(module, "fits", _always))


def fitting(references: Sequence[Message]) -> list[Metric]:
    """The metrics that say something about answers like these."""
    return [metric for metric in map(find, names()) if metric.fits(references)]


def texts(predictions: Sequence[Message], references: Sequence[Message]) -> tuple[list[str], list[str]]:
    """What is compared by those that look at texts alone: calls as JSON, reasoning left out."""
    assert len(predictions) == len(references)
    return [each.text for each in predictions], [each.text for each in references]


def means(scores: Mapping[str, Sequence[float | None]]) -> Statistics:
    """Scores that are means over the rows, None where a row has no say."""
    columns = [
        column
        for of_rows in scores.values()
        for column in ([0.0 if s is None else s for s in of_rows], [float(s is not None) for s in of_rows])
    ]

    def values(sums: Numbers) -> dict[str, Numbers]:
        with np.errstate(invalid="ignore"):
            return {name: sums[..., 2 * i] / sums[..., 2 * i + 1] for i, name in enumerate(scores)}

    return Statistics(np.array(columns, np.float64).T.reshape(-1, len(columns)), values)


def of_corpus(name: str, rows: Sequence[Sequence[float]], score: Callable[[list[float]], float]) -> Statistics:
    """A score of one corpus at a time, as a function of the sums."""

    def values(sums: Numbers) -> dict[str, Numbers]:
        return {name: np.apply_along_axis(lambda each: score(each.tolist()), -1, sums)}

    return Statistics(np.array(rows, np.float64), values)


def percent(value: Any) -> float:
    """A truth value or a share as a percentage."""
    return 100.0 * float(value)


def _always(references: Sequence[Message]) -> bool:
    return True
