"""Full fine-tuning: every weight is trained."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import cast, final

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from glm_lightning.methods.base import Ingredients, Method


@final
class Full(Method):
    """All weights move. Most capacity and most memory: weights, gradients and two moments of every parameter."""

    trains_base = True
    artefact = "model"

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
        trained = self.trained()
        base = dict(self.ingredients.load().named_parameters())
        kept: dict[str, Tensor] = {name: parameter.detach().clone() for name, parameter in trained.items()}
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(base[name.removeprefix("network.")])
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in trained.items():
                    parameter.copy_(kept[name])

    def save(self, folder: Path) -> None:
        """Write a Hugging Face folder: config.json and safetensors, in the type the base had on disk."""
        network = cast(PreTrainedModel, self.network)
        dtype = self.ingredients.base_dtype
        config_dtype, network.config.dtype = network.config.dtype, dtype
        network.save_pretrained(folder, state_dict={k: v.to(dtype) for k, v in network.state_dict().items()})
        network.config.dtype = config_dtype
