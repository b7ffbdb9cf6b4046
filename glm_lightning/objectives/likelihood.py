"""What objectives share that learn tokens by their likelihood alone."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from glm_lightning.objectives.base import Objective, perplexity
from glm_lightning.objectives.supervised import token_sums
from glm_lightning.types import Batch, Loss


class Likelihood(Objective):
    """Negative log-likelihood of the labelled tokens, in nats."""

    def loss(self, network: nn.Module, batch: Batch) -> Loss:
        """Sum over the micro-batch's supervised tokens."""
        sums = token_sums(network, batch)
        return Loss(total=sums.total, count=sums.num_tokens, sums={"token_accuracy": sums.num_correct})

    def measured(self, means: Mapping[str, float]) -> dict[str, float]:
        """With the perplexity; see `Objective.measured`."""
        return {"loss": means["loss"], "perplexity": perplexity(means["loss"]), **means}
