"""Move keys along the rotary positions, and take the keys and values of a text as a prefix."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from glm_lightning.models.chatglm.positions import rotary_table, rotate
from glm_lightning.models.prefix.geometry import attention_modules, is_latent

Layers = list[tuple[Tensor, Tensor]]
"""Keys (K, P, D) and values (K, P, E) of each layer."""

CHATGLM = "chatglm"
"""The model type of ChatGLM-6B, whose positions have two dimensions."""

FIXED = ("default", "linear", "llama3", "yarn")
"""Rotary types whose frequencies do not depend on how long a row is."""


def can_rotate(network: PreTrainedModel) -> bool:
    """Whether the rotation by a number of positions is one and the same matrix wherever it begins."""
    return getattr(_rotary(network), "rope_type", None) in FIXED


def rotated(network: PreTrainedModel, layers: Layers, *, by: int) -> Layers:
    """The keys as if they stood ``by`` positions further on; values have no position."""
    return [(_rotated(network, key, by), value) for key, value in layers]


def _rotated(network: PreTrainedModel, key: Tensor, by: int) -> Tensor:
    if network.config.model_type == CHATGLM:
        # of its two positions the first goes on; the second is 0 all over a context
        cos, sin = rotary_table(torch.tensor([[[by], [0]]], device=key.device), head_dim=key.shape[-1], dtype=key.dtype)
        return rotate(key[None], cos, sin)[0]
    attention, rotary = attention_modules(network)[0], _rotary(network)
    apply: Callable[..., tuple[Tensor, Tensor]] = sys.modules[type(attention).__module__].apply_rotary_pos_emb
    # latent attention rotates the last part of a key, the others decide by the size of cos and sin
    still = cast(int, attention.qk_nope_head_dim) if is_latent(attention) else 0
    passed, turned = key[..., :still], key[..., still:]
    cos, sin = rotary(key, position_ids=torch.tensor([[by]], device=key.device))
    # YaRN's factor on cos and sin is no rotation: queries and real keys bring it, a prefix has none
    scale = cast(float, rotary.attention_scaling)
    _, turned = apply(turned[None], turned[None], cos / scale, sin / scale)
    return torch.cat([passed, turned[0]], dim=-1)


def _rotary(network: PreTrainedModel) -> nn.Module:
    return cast(nn.Module, network.base_model.rotary_emb)


@dataclass
class Recorder:
    """In the place of a prefix: puts nothing in front and keeps what the attention functions are given."""

    layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def before(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keep the keys and values of the only row."""
        self.layers[layer] = key[0], value[0]
        return key, value


@torch.no_grad()
def layers_of_text(network: PreTrainedModel, input_ids: Tensor) -> Layers:
    """Keys and values that act as the text ``input_ids`` (P,) does right before a row.

    The network, to which a prefix has been attached, reads the text at the positions 0 to P - 1. Its keys are moved by
    -P: to a row whose positions start at 0 they are as far away as if it went on at P. What a prefix does is relative,
    so with these the network gives each row the logits that its base gives to the text with the row behind it.
    """
    recorder = Recorder()
    positions = torch.arange(len(input_ids), device=network.device)[None]
    if network.config.model_type == CHATGLM:  # a context
        positions = torch.stack([positions, torch.zeros_like(positions)], dim=1)
    ids = input_ids[None].to(network.device)
    network.base_model(input_ids=ids, position_ids=positions, use_cache=False, prefix=recorder)
    layers = [recorder.layers[layer] for layer in sorted(recorder.layers)]
    return rotated(network, [(key.float(), value.float()) for key, value in layers], by=-len(input_ids))
