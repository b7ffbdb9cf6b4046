"""The face of an objective."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import nn

from glm_lightning.types import Batch, Loss


class Objective(ABC):
    """Turns a micro-batch into sums over its supervised tokens.

    Sums, not means: only the caller knows how many tokens the whole optimizer step has.
    """

    @abstractmethod
    def loss(self, network: nn.Module, batch: Batch) -> Loss:
        """The sums of one micro-batch; ``Loss.total`` is what is minimised."""
