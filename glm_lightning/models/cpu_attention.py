"""Causal attention for training on a CPU: packed samples one by one, and a faster backward pass in bfloat16.

A mask over a packed row makes torch multiply what is then thrown away; here each sample is attended to as if it stood
alone. In bfloat16 torch's fused backward kernel for CPUs goes through small blocks. Five products in large ones, as
here, take a fifth of its time for 128 positions, half for 512, and as long for 2,048 and more (measured with AMX and
nine heads of 64). In float32 torch's kernel is the faster one (from 64 to 1,024 positions), and it is used.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import repeat_kv

BLOCK = 256
"""About as many queries' gradients are computed at once, in bfloat16."""


def fits(query: Tensor, key: Tensor, value: Tensor, starts: Tensor | None) -> bool:
    """Whether `causal` can be used and is worth it: on a CPU, for packed rows or for any in bfloat16."""
    possible = (
        query.device.type == "cpu"
        and query.dtype == key.dtype == value.dtype
        and 1 < query.shape[2] <= key.shape[2]
        and query.shape[3] == value.shape[3]
    )
    learns = torch.is_grad_enabled() and any(states.requires_grad for states in (query, key, value))
    return possible and (starts is not None or (learns and query.dtype == torch.bfloat16))


def causal(query: Tensor, key: Tensor, value: Tensor, scaling: float, starts: Tensor | None = None) -> Tensor:
    """Attention in which a sample's last query sees all its keys, the one before it one less, and so on.

    query (B, h, T, D), key and value (B, h_kv, P + T, D) with h_kv a divisor of h, the first P of which every query
    sees; (B, T, h, D). ``starts`` (S + 1,) are the places in the flattened rows where samples begin, and B T; None: a
    row is a sample.
    """
    return cast(Tensor, _causal(query, key, value, starts, scaling)[0])


class _Sample(NamedTuple):
    """Where the queries and keys of some samples of one length lie."""

    rows: slice
    places: slice

    def of(self, states: Tensor, front: int = 0) -> Tensor:
        """(B, h, front + T, D) to the states of these, with what is in front of the row in front of them."""
        states = states[self.rows]
        if not front:
            return states[:, :, self.places]
        return torch.cat([states[:, :, :front], states[:, :, front:][:, :, self.places]], 2)


def _samples(query: Tensor, starts: Tensor | None) -> list[_Sample]:
    if starts is None:
        return [_Sample(slice(None), slice(None))]
    width = query.shape[2]
    return [
        _Sample(slice(start // width, start // width + 1), slice(start % width, start % width + stop - start))
        for start, stop in itertools.pairwise(starts.tolist())
    ]


# An operator of torch's own kind, so that a compiled layer can call it and need not look inside.
@torch.library.custom_op("glm_lightning::causal_attention", mutates_args=(), device_types="cpu")
def _causal(query: Tensor, key: Tensor, value: Tensor, starts: Tensor | None, scaling: float) -> tuple[Tensor, Tensor]:
    """Output (B, T, h, D), and (B, h, T) the logarithms of the sums of exponentials."""
    front, repeats = key.shape[2] - query.shape[2], query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, repeats), repeat_kv(value, repeats)
    output, log_sums = _empty(query)
    for sample in _samples(query, starts):
        queries, keys = sample.of(query), sample.of(key, front)
        seen, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            queries,
            keys,
            sample.of(value, front),
            0.0,
            not front,
            attn_mask=_mask(queries, keys) if front else None,
            scale=scaling,
        )
        output[sample.rows, sample.places] = seen.transpose(1, 2)
        log_sums[sample.rows, :, sample.places] = log_sum
    return output, log_sums


@_causal.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, starts: Tensor | None, scaling: float) -> tuple[Tensor, Tensor]:
    return _empty(query)


def _empty(query: Tensor) -> tuple[Tensor, Tensor]:
    batch, heads, length, width = query.shape
    wide = torch.promote_types(query.dtype, torch.float32)
    return query.new_empty(batch, length, heads, width), query.new_empty(batch, heads, length, dtype=wide)


@torch.library.custom_op("glm_lightning::causal_attention_backward", mutates_args=(), device_types="cpu")
def _backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    log_sums: Tensor,
    starts: Tensor | None,
    scaling: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value."""
    front = key.shape[2] - query.shape[2]
    grads = (torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value))
    grad, output = grad.transpose(1, 2), output.transpose(1, 2)
    states = query, grad, output, log_sums[..., None], key, value
    function: Callable[..., _Grads]
    if query.dtype == torch.bfloat16:
        function, (*of_queries, of_key, of_value) = _by_products, _with_sums(*states, scaling)
    else:
        function, (*of_queries, of_key, of_value) = _by_torch, states
    for sample in _samples(query, starts):
        own = [*map(sample.of, of_queries), sample.of(of_key, front), sample.of(of_value, front)]
        found = function(*own, scaling=scaling)
        grads[0][sample.rows, :, sample.places] = found[0]
        for whole, part in zip(grads[1:], found[1:], strict=True):
            whole[sample.rows, :, front:][:, :, sample.places] = part[:, :, front:]
            if front:
                whole[sample.rows, :, :front] += part[:, :, :front]
    return grads


@_backward.register_fake
def _(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *states, starts, ctx.scaling = inputs
    ctx.save_for_backward(*states, *output, starts)


def _differentiate(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *saved, starts = ctx.saved_tensors
    return (*_backward(grad, *saved, starts, ctx.scaling), None, None)


_causal.register_autograd(_differentiate, setup_context=_keep)

_Grads = tuple[Tensor, Tensor, Tensor]


def _by_torch(
    query: Tensor, grad: Tensor, output: Tensor, log_sum: Tensor, key: Tensor, value: Tensor, *, scaling: float
) -> _Grads:
    repeats = query.shape[1] // key.shape[1]
    square = query.shape[2] == key.shape[2]
    of_query, *of_keys = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad,
        query,
        repeat_kv(key, repeats),
        repeat_kv(value, repeats),
        output,
        log_sum[..., 0],
        0.0,
        square,
        attn_mask=None if square else _mask(query, key),
        scale=scaling,
    )
    of_key, of_value = (part.unflatten(1, (-1, repeats)).sum(2) for part in of_keys)
    return of_query, of_key, of_value


def _with_sums(
    query: Tensor, grad: Tensor, output: Tensor, log_sum: Tensor, key: Tensor, value: Tensor, scaling: float
) -> tuple[Tensor, ...]:
    """Queries, their gradients, keys and values (..., D + 2), as `_by_products` takes them.

    P = exp(s q k - log sum), and dS = P (dO v - sum(dO o)): what is subtracted takes part in the product as two
    further columns, since only a product's sum is kept in 32 bits before it is rounded.
    """
    own = (grad.float() * output).sum(-1, keepdim=True)
    return _with_columns(query, log_sum / -scaling), _with_columns(grad, -own), _with_ones(key), _with_ones(value)


def _by_products(query: Tensor, grad: Tensor, key: Tensor, value: Tensor, *, scaling: float) -> _Grads:
    """After Dao et al. 2022 (arXiv:2205.14135), appendix B.2, in large blocks: of some queries and all they see."""
    num_queries, num_keys = query.shape[2], key.shape[2]
    num_blocks = round(num_queries / BLOCK)
    if num_blocks <= 1:
        return _of_block(query, grad, key, value, scaling)
    of_queries = []
    # what several blocks add to is kept in 32 bits until all have
    sums = [states.new_zeros(*states.shape[:3], query.shape[3] - 2, dtype=torch.float32) for states in (key, value)]
    for start, stop in itertools.pairwise(num_queries * number // num_blocks for number in range(num_blocks + 1)):
        places, seen = slice(start, stop), slice(num_keys - num_queries + stop)
        own = query[:, :, places], grad[:, :, places]
        found, *parts = _of_block(*own, key[:, :, seen], value[:, :, seen], scaling)
        of_queries.append(found)
        for total, part in zip(sums, parts, strict=True):
            total[:, :, seen] += part
    return torch.cat(of_queries, 2), sums[0].to(key.dtype), sums[1].to(value.dtype)


def _of_block(query: Tensor, grad: Tensor, key: Tensor, value: Tensor, scaling: float) -> _Grads:
    """Query heads that share a key head stand below one another, so that one product serves all of them."""
    num_queries, num_keys, repeats = query.shape[2], key.shape[2], query.shape[1] // key.shape[1]
    keys, values = (states.flatten(0, 1).contiguous() for states in (key, value))
    queries, grads = (states.reshape(len(keys), repeats * num_queries, -1).contiguous() for states in (query, grad))
    weights = queries.new_empty(*queries.shape[:2], num_keys)
    weights.baddbmm_(queries, keys.mT, beta=0, alpha=scaling).exp_()
    weights.unflatten(1, (repeats, num_queries)).tril_(num_keys - num_queries)  # keys after the query are not seen
    scores = torch.bmm(grads, values.mT).mul_(weights)
    of_query = torch.bmm(scores, keys[..., :-2]).mul_(scaling).reshape(*query.shape[:3], -1)
    of_key = torch.bmm(scores.mT, queries[..., :-2]).mul_(scaling)
    of_value = torch.bmm(weights.mT, grads[..., :-2])
    return of_query, *(states.unflatten(0, key.shape[:2]) for states in (of_key, of_value))


def _mask(query: Tensor, key: Tensor) -> Tensor:
    """(B, 1, T, K) for torch's kernel: minus infinity where a key comes after the query."""
    num_queries, num_keys = query.shape[2], key.shape[2]
    unseen = query.new_full((num_queries, num_keys), -torch.inf).triu_(1 + num_keys - num_queries)
    return unseen.expand(query.shape[0], 1, -1, -1)


def _with_columns(states: Tensor, column: Tensor) -> Tensor:
    """``states`` and a float32 ``column`` as the sum of two columns of their type."""
    high = column.to(states.dtype)
    return _beside(states, high, column - high)


def _with_ones(states: Tensor) -> Tensor:
    return _beside(states, *states.new_ones(2))


def _beside(states: Tensor, *columns: Tensor) -> Tensor:
    """(..., D) and columns (..., 1) beside it, in the type of the states."""
    width = states.shape[-1]
    result = states.new_empty(*states.shape[:-1], width + len(columns))
    result[..., :width] = states
    for place, column in enumerate(columns, start=width):
        result[..., place : place + 1] = column
    return result
