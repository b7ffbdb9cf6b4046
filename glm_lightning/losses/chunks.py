"""Functions of logits, a chunk of positions at a time: never all logits at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

CHUNK_ELEMENTS = 1 << 25
"""Logits held at once: 32 Mi elements, 64 MiB in 16 bits. A chunk is this many, divided by the vocabulary."""

CPU_BLOCK_ELEMENTS = 1 << 21
"""Of these so many are in float32 at once where cross-entropy is taken: 8 MiB stay in a processor's cache."""

BLOCK_ELEMENTS = 1 << 23
"""The same on any other device, which takes longer to be told of a smaller block than to compute it."""

Sums = Callable[[Tensor, slice], Tensor]
"""From logits (n, V) in float32 and which of the positions they are of to sums (P,), the first of them minimised."""


def slices(num_positions: int, vocabulary: int) -> list[slice]:
    """The chunks of the positions; none where there are no positions."""
    return _slices(num_positions, CHUNK_ELEMENTS // vocabulary)


def blocks(num_positions: int, vocabulary: int, *, kind: str) -> list[slice]:
    """The blocks of a chunk on a device of this kind."""
    return _slices(num_positions, (CPU_BLOCK_ELEMENTS if kind == "cpu" else BLOCK_ELEMENTS) // vocabulary)


def _slices(count: int, size: int) -> list[slice]:
    size = max(1, size)
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """What sums are taken in: float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def in_compute_type(hidden_states: Tensor) -> Tensor:
    """Hidden states in the type of an autocast region, converted once and not at each use."""
    if torch.is_autocast_enabled(hidden_states.device.type):
        return hidden_states.to(torch.get_autocast_dtype(hidden_states.device.type))
    return hidden_states


def linear_sums(hidden_states: Tensor, weight: Tensor, bias: Tensor | None, function: Sums) -> Tensor:
    """The sums (P,) of ``function`` over the logits ``hidden_states @ weight.T + bias``; differentiable by the first.

    hidden_states (N, H), weight (V, H), bias (V,) or None. The gradient of the first sum is built chunk by chunk in the
    forward pass, so that ``function`` runs once, and only for inputs that require one.
    """
    hidden_states = in_compute_type(hidden_states)
    # Asked here: inside the function gradients are off, and a validation pass must not build any.
    wanted = tuple(
        torch.is_grad_enabled() and tensor is not None and tensor.requires_grad
        for tensor in (hidden_states, weight, bias)
    )
    total, others = _LinearSums.apply(hidden_states, weight, bias, function, wanted)  # type: ignore[no-untyped-call]
    return torch.cat([total[None], others])


def projected_sums(
    project: Callable[[Tensor], Tensor], hidden_states: Tensor, function: Sums, vocabulary: int
) -> Tensor:
    """The same for any head: ``project`` maps (n, H) to logits (n, V); logits are recomputed in the backward pass."""

    def sums(rows: slice) -> Tensor:
        logits = project(hidden_states[rows])
        return function(logits.to(accumulation_dtype(logits.dtype)), rows)

    # One pass even where there is no position keeps the graph (and so the ranks' collectives) whole.
    chunks = slices(len(hidden_states), vocabulary) or [slice(0, 0)]
    return torch.stack([checkpoint(sums, rows, use_reentrant=False) for rows in chunks]).sum(0)


def projected_log_probs(
    project: Callable[[Tensor], Tensor], hidden_states: Tensor, targets: Tensor, vocabulary: int
) -> Tensor:
    """Log-probability (N,) of each target (N,), in nats; logits are recomputed in the backward pass."""

    def log_probs(rows: slice) -> Tensor:
        logits = project(hidden_states[rows])
        logits = logits.to(accumulation_dtype(logits.dtype))
        return -torch.nn.functional.cross_entropy(logits, targets[rows], reduction="none")

    chunks = slices(len(hidden_states), vocabulary) or [slice(0, 0)]
    return torch.cat([checkpoint(log_probs, rows, use_reentrant=False) for rows in chunks])


class _LinearSums(torch.autograd.Function):
    """A chunk's share of every gradient is known as soon as its logits are."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, function: Sums, wanted: tuple[bool, bool, bool]
    ) -> tuple[Tensor, Tensor]:
        dtype = accumulation_dtype(hidden.dtype)
        grads = empty_gradients(hidden, weight, wanted, dtype)
        # One copy in the compute type for all chunks; nothing to do where the head is held in it.
        head = weight.to(hidden.dtype)
        sums = []
        for rows in slices(len(hidden), len(weight)) or [slice(0, 0)]:
            logits = torch.nn.functional.linear(hidden[rows], head).to(dtype)
            if bias is not None:
                logits += bias
            with torch.set_grad_enabled(any(wanted)):
                found = function(logits.requires_grad_(any(wanted)), rows)
                if any(wanted):
                    (error,) = torch.autograd.grad(found[0], logits)
                    accumulate(grads, error.to(head.dtype), hidden[rows], head, rows)
                    accumulate_bias(grads, error)
            sums.append(found.detach())
        total = torch.stack(sums).sum(0)
        ctx.save_for_backward(*grads)
        ctx.dtypes = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        others = total[1:].clone()
        ctx.mark_non_differentiable(others)
        return total[0].clone(), others

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return (*scaled_gradients(ctx.saved_tensors, grad_total, ctx.dtypes), None, None)


Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]
"""Of hidden states, weight and bias; None where none is wanted."""


def empty_gradients(hidden: Tensor, weight: Tensor, wanted: tuple[bool, bool, bool], dtype: torch.dtype) -> Gradients:
    """Zeros to add to."""
    return (
        torch.zeros_like(hidden) if wanted[0] else None,
        torch.zeros_like(weight, dtype=dtype) if wanted[1] else None,
        torch.zeros_like(weight[:, 0], dtype=dtype) if wanted[2] else None,
    )


def accumulate(grads: Gradients, error: Tensor, chunk: Tensor, head: Tensor, rows: slice) -> None:
    """Add one chunk's gradients but the bias': error (n, V) = d total / d logits, chunk (n, H), head (V, H)."""
    hidden_grad, weight_grad, _ = grads
    if hidden_grad is not None:
        hidden_grad[rows] = error @ head
    if weight_grad is not None:
        weight_grad += error.T @ chunk


def accumulate_bias(grads: Gradients, error: Tensor) -> None:
    """Add the bias' gradient of some rows, in float32."""
    *_, bias_grad = grads
    if bias_grad is not None:
        bias_grad += error.sum(0)


def scaled_gradients(grads: Any, factor: Tensor, dtypes: Any) -> list[Tensor | None]:
    """``factor`` times each, in the types of what they are gradients of."""
    return [
        # In float32: on a GPU the factor would else be rounded to the gradient's 16 bits.
        None if grad is None else (grad.to(factor.dtype) * factor).to(dtype)
        for grad, dtype in zip(grads, dtypes, strict=True)
    ]
