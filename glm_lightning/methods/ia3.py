"""IA3: keys, values and inner activations are scaled by learned vectors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import final

from peft import IA3Config
from torch import nn
from transformers import PreTrainedModel

from glm_lightning.methods import adapters, layers
from glm_lightning.methods.base import Method
from glm_lightning.methods.ingredients import Ingredients
from glm_lightning.types import UserError

_KEYS_AND_VALUES = ("k_proj", "v_proj", "kv_b_proj", "query_key_value")
"""What makes keys and values. ChatGLM-6B makes its queries in the same layer, so these are scaled, too."""

_INNER = ("down_proj", "dense_4h_to_h", "fc2")
"""What takes the inner activations of a feed-forward block."""


@final
class IA3(Method):
    """Keys, values and the inner activations of feed-forward blocks times a vector (Liu et al. 2022, arXiv:2205.05638).

    The fewest parameters of all methods: two vectors of the keys' width and one of the inner width for each layer. It
    begins at ones, that is at the base.

    Args:
        ingredients: what every method is given.
        outputs: layers whose outputs are scaled, as their names end; null: those that make keys and values.
        inputs: layers whose inputs are scaled, as their names end; null: those that take the inner activations.
    """

    trains_base = False
    artefact = "adapter"

    def __init__(
        self, ingredients: Ingredients, *, outputs: list[str] | None = None, inputs: list[str] | None = None
    ) -> None:
        super().__init__(ingredients)
        self.outputs, self.inputs = outputs, inputs
        if outputs == [] and inputs == []:
            raise UserError("method.outputs and method.inputs are empty: nothing is scaled; name layers in one of them")

    def check(self, skeleton: PreTrainedModel) -> None:
        """Every name must lead to a layer, and there must be one."""
        if problems := list(self._problems(skeleton)):
            raise UserError(problems)

    def _problems(self, skeleton: PreTrainedModel) -> Iterator[str]:
        names = layers.linear(skeleton)
        there = f"here; name them; there are {', '.join(layers.ends(names))}"
        for key, given in (("outputs", self.outputs), ("inputs", self.inputs)):
            yield from layers.problems(f"method.{key}", given or [], skeleton)
        if self.outputs is None and not _known(_KEYS_AND_VALUES, skeleton):
            yield f"method.outputs is null: no layer is known to make keys and values {there}"
        if self.inputs is None and not _known(_INNER, skeleton):
            yield f"method.inputs is null: no layer is known to take inner activations {there}"
        outputs, inputs = self._targets(skeleton)
        if both := set(layers.matched(outputs, names)) & set(layers.matched(inputs, names)):
            yield f"method.inputs and method.outputs both lead to {min(both)}: a layer is in one of them"

    def _targets(self, network: PreTrainedModel) -> tuple[list[str], list[str]]:
        """Names of layers whose outputs are scaled, and of those whose inputs are."""
        outputs = self.outputs if self.outputs is not None else _known(_KEYS_AND_VALUES, network)
        return outputs, self.inputs if self.inputs is not None else _known(_INNER, network)

    def adapt(self, network: PreTrainedModel) -> nn.Module:
        """Freeze the base and put vectors of ones on the targets."""
        outputs, inputs = self._targets(network)
        if layers.experts(network):
            self.notices.append("the experts' inner activations are not scaled: the experts are no linear layers")
        config = IA3Config(target_modules=[*outputs, *inputs], feedforward_modules=inputs, task_type="CAUSAL_LM")
        return adapters.put_on(network, config)

    def without_adaptation(self) -> AbstractContextManager[None]:
        """The vectors switched off."""
        return adapters.switched_off(self.network)

    def save(self, folder: Path) -> None:
        """Write PEFT's adapter folder; stock ``PeftModel.from_pretrained`` reads it."""
        adapters.write(self.network, folder)


def _known(names: tuple[str, ...], network: nn.Module) -> list[str]:
    there = set(layers.ends(layers.linear(network)))
    return [name for name in names if name in there]
