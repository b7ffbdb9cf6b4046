"""Run a composed configuration: check, seed, build, fit, test, report."""

from glm_lightning.training.run import Run, run

__all__ = ["Run", "run"]
