"""A network of fewer layers: a student that begins as a part of its teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

from torch import nn

from glm_lightning.types import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

Which = Literal["first", "spread"]
"""``first``: the first so many; ``spread``: from the first to the last at equal steps (Sanh et al. 2019,
arXiv:1910.01108, section 3, begin their student with every other layer)."""


def numbers_of(config: PretrainedConfig, num_layers: int, which: Which) -> list[int]:
    """Which layers a network of so many has; ``config`` is that of the whole.

    Raises:
        UserError: there are not so many.
    """
    there = cast(int, config.get_text_config().num_hidden_layers)
    if not 1 <= num_layers <= there:
        raise UserError(
            f"model.num_layers is {num_layers}: must be from 1 to the {there} layers that there are, or null"
        )
    if which == "first" or num_layers == 1:
        return list(range(num_layers))
    return [round(place * (there - 1) / (num_layers - 1)) for place in range(num_layers)]


def shortened(config: Any, numbers: Sequence[int]) -> PretrainedConfig:
    """``config``, made that of the layers of these numbers."""
    text = config.get_text_config()
    there = text.num_hidden_layers
    text.num_hidden_layers = len(numbers)
    for name, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == there:  # a kind for each layer
            setattr(text, name, [value[number] for number in numbers])
    return cast("PretrainedConfig", config)


def keep(network: PreTrainedModel, numbers: Sequence[int]) -> None:
    """Leave only the layers of these numbers in ``network``, and say so in its configuration."""
    layers = blocks(network)
    kept = nn.ModuleList(layers[number] for number in numbers)
    for place, layer in enumerate(kept):
        for module in layer.modules():
            if "layer_idx" in vars(module):  # where its keys and values lie in a cache
                module.layer_idx = place  # type: ignore[assignment]
    owner, name = next(
        (module, name) for module in network.modules() for name, child in module.named_children() if child is layers
    )
    setattr(owner, name, kept)
    shortened(network.config, numbers)


def blocks(network: nn.Module) -> nn.ModuleList:
    """The layers of the decoder, from first to last."""
    lists = [module for module in network.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len)
