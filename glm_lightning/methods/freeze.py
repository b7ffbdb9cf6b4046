"""Freezing: some of the base's own weights are trained, the others are left as they are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import final

from torch import Tensor, nn
from transformers import PreTrainedModel

from glm_lightning.methods import layers, weights
from glm_lightning.methods.base import Method
from glm_lightning.methods.ingredients import Ingredients
from glm_lightning.types import UserError


@final
class Freeze(Method):
    """The last (or first) layers move, and what else is named. No new weights, no cost when the network answers.

    Args:
        ingredients: what every method is given.
        num_layers: layers that are trained: the last so many, or the first where it is negative.
        modules: modules that are trained, too: names as they end (``input_layernorm``), or regular expressions of whole
            names.
        embeddings: train the embedding.
        head: train the final norm and the output layer. Where embedding and output layer are one matrix, it is trained
            if either is.
    """

    trains_base = False
    artefact = "model"
    on_quantized = False

    def __init__(
        self,
        ingredients: Ingredients,
        *,
        num_layers: int = 2,
        modules: list[str] | None = None,
        embeddings: bool = False,
        head: bool = False,
    ) -> None:
        super().__init__(ingredients)
        self.num_layers, self.modules_named = num_layers, modules or []
        self.embeddings, self.head = embeddings, head
        self._base: dict[str, Tensor] = {}
        if not (num_layers or modules or embeddings or head):
            raise UserError("method.num_layers is 0: nothing else is trained either; give layers, modules or head=true")

    def check(self, skeleton: PreTrainedModel) -> None:
        """There must be so many layers, and a module of each name."""
        if problems := list(self._problems(skeleton)):
            raise UserError(problems)

    def _problems(self, skeleton: PreTrainedModel) -> Iterator[str]:
        there = len(layers.blocks(skeleton))
        if abs(self.num_layers) > there:
            yield f"method.num_layers is {self.num_layers}: this network has {there}; use method=full for all of it"
        for name in self.modules_named:
            try:
                found = layers.modules(name, skeleton)
            except re.error as error:
                yield f"method.modules holds {name!r}: no regular expression: {error}"
                continue
            if not any(True for module in found.values() for _ in module.parameters()):
                names = layers.with_weights(skeleton)
                yield f"method.modules holds {name!r}: no module with weights is called so; there are {names}"

    def adapt(self, network: PreTrainedModel) -> nn.Module:
        """Only the chosen parameters require a gradient; their base values are remembered where they were loaded."""
        network.requires_grad_(False)
        for module in self._chosen(network):
            module.requires_grad_(True)
        trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self._base = {f"network.{name}": p.detach().clone() for name, p in trained.items()}
        if network.config.get_text_config().tie_word_embeddings and self.embeddings != self.head:
            self.notices.append("embedding and output layer are one matrix in this network: both are trained")
        return network

    def _chosen(self, network: PreTrainedModel) -> Iterator[nn.Module]:
        blocks = layers.blocks(network)
        if self.num_layers:
            yield from blocks[-self.num_layers :] if self.num_layers > 0 else blocks[: -self.num_layers]
        for name in self.modules_named:
            yield from layers.modules(name, network).values()
        if self.embeddings:
            yield network.get_input_embeddings()
        if self.head:
            yield network.get_output_embeddings()
            yield from layers.final_norm(network)

    @property
    def num_bytes_kept(self) -> int:
        """The base's own values of what is trained."""
        return sum(value.nbytes for value in self._base.values())

    def without_adaptation(self) -> AbstractContextManager[None]:
        """The base's values of what is trained swapped in, and back afterwards."""
        return weights.exchanged(self.trained(), self._base)

    def save(self, folder: Path) -> None:
        """Write a Hugging Face folder: config.json and safetensors, in the type the base had on disk."""
        weights.write(self.network, folder, dtype=self.ingredients.base_dtype)
