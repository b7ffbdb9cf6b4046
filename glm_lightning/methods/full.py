"""Full fine-tuning: every weight is trained."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import final

from torch import nn
from transformers import PreTrainedModel

from glm_lightning.methods import weights
from glm_lightning.methods.base import Method
from glm_lightning.methods.ingredients import Ingredients


@final
class Full(Method):
    """All weights move. Most capacity and most memory: weights, gradients and two moments of every parameter."""

    trains_base = True
    artefact = "model"
    on_quantized = False

    def __init__(self, ingredients: Ingredients) -> None:
        super().__init__(ingredients)

    def check(self, skeleton: PreTrainedModel) -> None:
        """Any network will do."""

    def adapt(self, network: PreTrainedModel) -> nn.Module:
        """Every parameter requires a gradient."""
        return network.requires_grad_(True)

    @contextlib.contextmanager
    def without_adaptation(self) -> Iterator[None]:
        """Swap the base's weights in, read from disk again, and the trained ones back afterwards."""
        base = {f"network.{name}": value for name, value in self.ingredients.load().named_parameters()}
        with weights.exchanged(self.trained(), base):
            yield

    def save(self, folder: Path) -> None:
        """Write a Hugging Face folder: config.json and safetensors, in the type the base had on disk."""
        weights.write(self.network, folder, dtype=self.ingredients.base_dtype)
