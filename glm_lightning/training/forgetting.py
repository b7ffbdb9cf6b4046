"""What training has made a network forget: its loss on rows that are learned no more, before and after."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch

from glm_lightning.data.dataset import Dataset
from glm_lightning.methods.base import Method
from glm_lightning.objectives.sft import SFT

GROUP = "kept"
"""What such losses are logged under."""

GENERAL = "general"
"""The name of rows that belong to no run before."""

VERDICTS = ((-0.01, "better than before"), (0.01, "kept"), (0.05, "a little forgotten"), (0.2, "partly forgotten"))
"""Changes of a loss, as a share of what it was, up to which a word holds."""


def loss(trainer: pl.Trainer, method: Method, part: Dataset) -> float:
    """Cross-entropy in nats a token over all rows of ``part``, of all ranks, whatever the run's objective is."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    loader = data.evaluation_loader(part, rank=trainer.global_rank, world_size=trainer.world_size)
    sums = torch.zeros(2, dtype=torch.float64)
    for batch in loader:
        with method.as_written():
            found = SFT().loss(method.network, trainer.strategy.batch_to_device(batch))  # type: ignore[arg-type]
        sums += found.flat()[:2].cpu().double()
    if trainer.world_size > 1:
        sums = trainer.strategy.reduce(sums.to(method.device), reduce_op="sum").cpu()
    return float(sums[1] / sums[0])


def verdict(before: float, after: float) -> str:
    """A change of a loss in words."""
    change = (after - before) / max(before, 1e-9)
    return next((words for most, words in VERDICTS if change <= most), "forgotten")


def verdicts(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, dict[str, float | str]]:
    """Loss before and after and what that means, of all rows that are learned no more, by name."""
    names = (name for name in after if name.startswith(f"{GROUP}/") and name in before)
    return {
        name.partition("/")[2]: {
            "before": before[name],
            "after": after[name],
            "verdict": verdict(before[name], after[name]),
        }
        for name in names
    }
