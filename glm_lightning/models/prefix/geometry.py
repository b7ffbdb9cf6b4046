"""The sizes of the keys and values that a network's attention sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from torch import nn
from transformers import PreTrainedModel

from glm_lightning.types import UserError


@dataclass(frozen=True)
class Geometry:
    """Layers, key/value heads, and the size of one head's key and value; the same at every layer."""

    num_layers: int
    num_heads: int
    key_dim: int
    value_dim: int

    @property
    def layer_width(self) -> int:
        """Numbers that one prefix token has at one layer."""
        return self.num_heads * (self.key_dim + self.value_dim)

    @property
    def width(self) -> int:
        """Numbers that one prefix token has at all layers."""
        return self.num_layers * self.layer_width

    @classmethod
    def of(cls, network: PreTrainedModel) -> Self:
        """Read off the attention modules; the meta device will do.

        Raises:
            UserError: not every layer has an attention that takes a prefix, or they differ in size.
        """
        shapes = [shape for module in network.modules() if (shape := _key_value_shape(module)) is not None]
        num_layers = network.config.get_text_config().num_hidden_layers
        name = type(network).__name__
        if len(shapes) != num_layers:
            raise UserError(
                f"model: {len(shapes)} of the {num_layers} layers of {name} have an attention that takes a key/value "
                "prefix; choose another method, such as method=lora"
            )
        if len(set(shapes)) > 1:
            raise UserError(
                f"model: the layers of {name} have keys and values of different sizes, {sorted(set(shapes))} (heads, "
                "key, value), which one prefix does not fit; choose another method, such as method=lora"
            )
        return cls(num_layers, *shapes[0])


def attention_modules(network: nn.Module) -> list[nn.Module]:
    """The modules that compute attention, from the first layer to the last."""
    return [module for module in network.modules() if _key_value_shape(module) is not None]


def is_latent(attention: nn.Module) -> bool:
    """Whether this attention caches a latent from which keys and values are expanded (multi-head latent attention)."""
    return "kv_b_proj" in dict(attention.named_children())


def _key_value_shape(module: nn.Module) -> tuple[int, int, int] | None:
    """Heads, key size, value size as the attention function is given them; None where there is no attention."""
    parts: dict[str, nn.Module] = dict(module.named_children())
    if {"k_proj", "v_proj"} <= parts.keys():
        head_dim = _size(module, "head_dim")
        return _size(parts["k_proj"], "out_features") // head_dim, head_dim, head_dim
    if "kv_b_proj" in parts:
        return _size(module, "num_heads"), _size(module, "qk_head_dim"), _size(module, "v_head_dim")
    if "query_key_value" in parts:  # ChatGLM-6B: every head has queries, keys and values of its own
        head_dim = _size(module, "head_dim")
        return _size(parts["query_key_value"], "out_features") // (3 * head_dim), head_dim, head_dim
    return None


def _size(module: nn.Module, name: str) -> int:
    size = getattr(module, name)
    assert isinstance(size, int)
    return size
