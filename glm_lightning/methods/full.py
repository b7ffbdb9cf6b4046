"""Full fine-tuning: every weight is trained."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import final

from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from glm_lightning.methods import weights
from glm_lightning.methods.base import DEEPSPEED, FSDP, Method
from glm_lightning.methods.ingredients import Ingredients
from glm_lightning.types import UserError


@final
class Full(Method):
    """All weights move. Most capacity and most memory: weights, gradients and two moments of every parameter.

    Args:
        ingredients: what every method is given.
        l2_to_start: w of a loss w / 2 |weights - start|^2, which pulls every weight back to where it began, so that
            less is forgotten (L2-SP, Li et al. 2018, arXiv:1802.01483); holds a copy of all weights. 0 is without.
    """

    trains_base = True
    artefact = "model"
    on_quantized = False

    def __init__(self, ingredients: Ingredients, *, l2_to_start: float = 0.0) -> None:
        super().__init__(ingredients)
        if l2_to_start < 0:
            raise UserError(f"method.l2_to_start is {l2_to_start}: must be 0 or more")
        self.l2_to_start = l2_to_start
        self._pulled_to: dict[str, Tensor] = {}

    def wrong_with(self, strategy: str) -> Iterator[str]:
        """A copy of all weights is whole on every rank, and the pull is added to gradients that are."""
        if self.l2_to_start and strategy in (*FSDP, *DEEPSPEED):
            yield f"method.l2_to_start is {self.l2_to_start}: keeps whole weights on every rank; use trainer=ddp"

    def check(self, skeleton: PreTrainedModel) -> None:
        """Any network will do."""

    def adapt(self, network: PreTrainedModel) -> nn.Module:
        """Every parameter requires a gradient."""
        network.requires_grad_(True)
        if self.l2_to_start:
            self._pulled_to = {f"network.{name}": p.detach().clone() for name, p in network.named_parameters()}
        return network

    @property
    def num_bytes_kept(self) -> int:
        """The copy of the start."""
        return sum(value.nbytes for value in self._pulled_to.values())

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Add the pull's gradient to the whole step's."""
        trained = self.trained() if self._pulled_to else {}
        for name, parameter in trained.items():
            if parameter.grad is not None:
                start = self._pulled_to[name].to(parameter.device)
                parameter.grad += self.l2_to_start * (parameter.detach() - start)

    @contextlib.contextmanager
    def without_adaptation(self) -> Iterator[None]:
        """Swap the base's weights in, read from disk again, and the trained ones back afterwards."""
        base = {f"network.{name}": value for name, value in self.ingredients.load().named_parameters()}
        with weights.exchanged(self.trained(), base):
            yield

    def save(self, folder: Path) -> None:
        """Write a Hugging Face folder: config.json and safetensors, in the type the base had on disk."""
        weights.write(self.network, folder, dtype=self.ingredients.base_dtype)
