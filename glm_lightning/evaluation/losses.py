"""The validation loss, as a run measures it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch

from glm_lightning.models.modes import evaluating
from glm_lightning.objectives.base import Objective
from glm_lightning.types import Batch


@torch.no_grad()
def losses(
    network: Any,
    batches: Iterable[Batch],
    *,
    objective: Objective,
    context: AbstractContextManager[Any],
    progress: Callable[[int], None],
) -> dict[str, float]:
    """What `Method.validation_step` and `Method.validation_metrics` make of the same batches.

    ``context`` is what forward passes run in; ``progress`` takes the rows of each batch.
    """
    sums, names = [], list[str]()
    with evaluating(network), context:
        for batch in batches:
            loss = objective.loss(network, batch.to(network.device))
            sums.append(loss.flat())
            names = list(loss.sums)
            progress(len(batch.rows))
    return objective.of_sums(torch.stack(sums).cpu().double().sum(0), names)
