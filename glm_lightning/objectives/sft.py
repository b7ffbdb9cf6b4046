"""Supervised fine-tuning: cross-entropy of the answers."""

from __future__ import annotations

from typing import final

from torch import nn

from glm_lightning.objectives.base import Objective
from glm_lightning.objectives.supervised import token_sums
from glm_lightning.types import Batch, Loss


@final
class SFT(Objective):
    """Negative log-likelihood of the labelled tokens, in nats."""

    def loss(self, network: nn.Module, batch: Batch) -> Loss:
        """Sum over the micro-batch's supervised tokens."""
        sums = token_sums(network, batch)
        return Loss(total=sums.total, num_tokens=sums.num_tokens, num_correct=sums.num_correct)
