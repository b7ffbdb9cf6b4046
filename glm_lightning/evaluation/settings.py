"""How a run is examined."""

from __future__ import annotations

from dataclasses import dataclass

from glm_lightning import metrics
from glm_lightning.metrics import Metric
from glm_lightning.types import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a run is examined: the ``evaluation`` node of the configuration.

    Args:
        metrics: names of files of `glm_lightning.metrics`.
        rows: how many test rows are answered; None is all.
        max_new_tokens: longest answer.
        batch_size: rows answered at once.
        samples: answers that are shown.
    """

    metrics: list[str]
    rows: int | None = None
    max_new_tokens: int = 128
    batch_size: int = 32
    samples: int = 3

    def __post_init__(self) -> None:
        numbers = {"rows": self.rows or 1, "max_new_tokens": self.max_new_tokens, "batch_size": self.batch_size}
        problems = [f"evaluation.{key} is {value}: must be 1 or more" for key, value in numbers.items() if value < 1]
        if self.samples < 0:
            problems.append(f"evaluation.samples is {self.samples}: must be 0 or more")
        for name in self.metrics:
            try:
                metrics.find(name)
            except UserError as error:
                problems += [f"evaluation.{problem}" for problem in error.problems]
        if problems:
            raise UserError(problems)

    @property
    def measures(self) -> list[Metric]:
        """The metrics."""
        return [metrics.find(name) for name in self.metrics]
