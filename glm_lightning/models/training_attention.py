"""The attention that networks train with: torch's, and kernels that keep packed samples apart without a mask."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from glm_lightning.models import cpu_attention

NAME = "sdpa_training"
"""The name under which transformers knows this implementation."""

_OTHER_KINDS = ("position_bias", "sliding_window", "softcap", "s_aux")
"""Arguments of attention that is more than causal."""


def use(network: PreTrainedModel) -> None:
    """Let ``network`` attend this way where it now uses torch's attention."""
    if network.config._attn_implementation == "sdpa":
        network.set_attn_implementation(NAME)


def as_autocast(states: Tensor) -> Tensor:
    """``states`` in the type that autocast computes in, where it is on: it does not reach into these kernels."""
    kind = states.device.type
    return states.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else states


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Transformers' attention function: the kernel that fits, otherwise that of the name ``sdpa``.

    Where ``cu_seq_lens_q`` says where samples of a row begin, the mask says the same and is not read.
    """
    starts = kwargs.get("cu_seq_lens_q")
    causal = module.is_causal if is_causal is None else is_causal
    plain = causal and not dropout and query.shape[2] == key.shape[2] and (attention_mask is None or starts is not None)
    if plain and all(kwargs.get(name) is None for name in _OTHER_KINDS):
        states = (as_autocast(query), as_autocast(key), as_autocast(value))
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        if cpu_attention.fits(*states, starts):
            return cpu_attention.causal(*states, scale, starts), None
        if starts is not None and flash_fits(*states):
            return _varlen(*states, scale, starts, kwargs["max_length_q"]), None
    return sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **kwargs
    )


def flash_fits(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether torch's flash kernels take these: 16 bits, on a GPU of Ampere's generation or later."""
    return (
        query.device.type == "cuda"
        and query.dtype == key.dtype == value.dtype
        and query.dtype in (torch.float16, torch.bfloat16)
        and query.shape[3] == value.shape[3]
        and query.shape[3] <= 256
        and query.shape[3] % 8 == 0
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


def _varlen(query: Tensor, key: Tensor, value: Tensor, scaling: float, starts: Tensor, longest: int) -> Tensor:
    """Samples of packed rows by torch's variable-length flash kernel: (B, h, T, D) to (B, T, h, D)."""
    flat_query, flat_key, flat_value = (states.transpose(1, 2).flatten(0, 1) for states in (query, key, value))
    output: Any = varlen_attn(
        flat_query,
        flat_key,
        flat_value,
        starts,
        starts,
        longest,
        longest,
        scale=scaling,
        window_size=(-1, 0),
        enable_gqa=True,
    )
    return cast(Tensor, output.unflatten(0, (query.shape[0], query.shape[2])))


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
