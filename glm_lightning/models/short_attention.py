"""Causal attention for training in bfloat16 on a CPU: torch's forward pass, and a backward pass of plain products.

Torch's fused backward kernel for CPUs goes through small blocks; for rows of a few hundred positions that takes three
to six times as long as five batched products over whole rows, which is what is done here. Longer rows are torch's.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "sdpa_short"
"""The name under which transformers knows this implementation."""

LONGEST = 256
"""Keys up to which plain products are faster than torch's kernel (measured from 64 to 1,024, nine heads of 64)."""


def use(network: PreTrainedModel) -> None:
    """Let ``network`` attend this way where it now uses torch's attention."""
    if network.config._attn_implementation == "sdpa":
        network.set_attn_implementation(NAME)


def fits(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether `causal` can be used and is worth it: bfloat16 on a CPU, short rows, a gradient is wanted."""
    return (
        query.device.type == "cpu"
        and query.dtype == key.dtype == value.dtype == torch.bfloat16
        and 1 < query.shape[2] <= key.shape[2] <= LONGEST
        and query.shape[3] == value.shape[3]
        and torch.is_grad_enabled()
        and any(states.requires_grad for states in (query, key, value))
        and not torch.compiler.is_compiling()
    )


def causal(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """Attention in which the last query sees all keys, the one before it one less, and so on.

    query (B, h, T, D), key and value (B, h_kv, K, D) with K >= T and h_kv a divisor of h; (B, h, T, D).
    """
    return cast(Tensor, _Causal.apply(query, key, value, scaling))  # type: ignore[no-untyped-call]


class _Causal(torch.autograd.Function):
    """Backwards after Dao et al. 2022 (arXiv:2205.14135), appendix B.2, over whole rows instead of blocks.

    Query heads that share a key head stand below one another, so that one product serves all of them.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        repeats = query.shape[1] // key.shape[1]
        square = query.shape[2] == key.shape[2]
        output, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query,
            repeat_kv(key, repeats),
            repeat_kv(value, repeats),
            0.0,
            square,
            attn_mask=None if square else _unseen(query, key).expand(query.shape[0], 1, -1, -1),
            scale=scaling,
        )
        ctx.save_for_backward(query, key, value, output, log_sum)
        ctx.scaling = scaling
        return cast(Tensor, output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, log_sum = ctx.saved_tensors
        repeats = query.shape[1] // key.shape[1]
        keys, values = (states.flatten(0, 1) for states in (key, value))
        queries, grads = _below(query, key), _below(grad, key)
        # P = exp(s q k - log sum), and dS = P (dO v - sum(dO o)): what is subtracted takes part in the product as two
        # further columns, since only a product's sum is kept in 32 bits before it is rounded.
        shifted = _with_columns(queries, _below(log_sum[..., None], key) / -ctx.scaling)
        unseen = _unseen(query, key).repeat(repeats, 1)
        weights = torch.baddbmm(unseen, shifted, _with_ones(keys).mT, alpha=ctx.scaling).exp_()
        own = _below((grad.float() * output).sum(-1, keepdim=True), key)
        scores = torch.bmm(_with_columns(grads, -own), _with_ones(values).mT).mul_(weights)
        grad_query = torch.bmm(scores, keys).mul_(ctx.scaling)
        grad_key = torch.bmm(scores.mT, queries).mul_(ctx.scaling)
        grad_value = torch.bmm(weights.mT, grads)
        return grad_query.view(query.shape), grad_key.view(key.shape), grad_value.view(value.shape), None


def _below(states: Tensor, key: Tensor) -> Tensor:
    """(B, h, T, D) to (B h_kv, repeats T, D)."""
    return states.reshape(key.shape[0] * key.shape[1], -1, states.shape[-1])


def _unseen(query: Tensor, key: Tensor) -> Tensor:
    """(T, K): minus infinity where a key comes after the query."""
    num_queries, num_keys = query.shape[2], key.shape[2]
    return query.new_full((num_queries, num_keys), -torch.inf).triu_(1 + num_keys - num_queries)


def _with_columns(states: Tensor, column: Tensor) -> Tensor:
    """``states`` and a float32 ``column`` as the sum of two columns of their type."""
    high = column.to(states.dtype)
    return torch.cat([states, high, (column - high).to(states.dtype)], -1)


def _with_ones(states: Tensor) -> Tensor:
    return torch.cat([states, states.new_ones(()).expand(*states.shape[:-1], 2)], -1)


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
    """Transformers' attention function: ours where it can be used, otherwise that of the name ``sdpa``."""
    seen = module.is_causal if is_causal is None else is_causal
    plain = attention_mask is None and seen and not dropout and query.shape[2] == key.shape[2]
    if plain and kwargs.get("position_bias") is None and fits(query, key, value):
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        return causal(query, key, value, scale).transpose(1, 2).contiguous(), None
    return sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **kwargs
    )


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
