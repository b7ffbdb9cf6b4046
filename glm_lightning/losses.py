"""What is minimised, as pure functions of tensors. Shapes as in `types`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

CHUNK_ELEMENTS = 1 << 25
"""Logits held at once: 32 Mi elements, 128 MiB in float32. A chunk is this many, divided by the vocabulary."""


class TokenSums(NamedTuple):
    """Sums over the supervised positions."""

    total: Tensor  # () negative log-likelihood in nats, float32 (float64 for float64 hidden states)
    num_tokens: Tensor  # () int64
    num_correct: Tensor  # () int64, where the most likely token is the label


def linear_cross_entropy(hidden_states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> TokenSums:
    """Cross-entropy of ``hidden_states @ weight.T + bias`` against ``targets``, without ever holding all logits.

    hidden_states (N, H), weight (V, H), bias (V,) or None, targets (N,). Log-sum-exp and sums are float32 (float64 for
    float64); gradients are built chunk by chunk in the forward pass, and only for inputs that require one.
    """
    if torch.is_autocast_enabled(hidden_states.device.type):
        # Once here, not at each use below: the head of a mixed-precision run may be held in float32.
        hidden_states = hidden_states.to(torch.get_autocast_dtype(hidden_states.device.type))
    # Asked here: inside the function gradients are off, and a validation pass must not build any.
    wanted = tuple(
        torch.is_grad_enabled() and tensor is not None and tensor.requires_grad
        for tensor in (hidden_states, weight, bias)
    )
    total, num_correct = _LinearCrossEntropy.apply(hidden_states, weight, bias, targets, wanted)  # type: ignore[no-untyped-call]
    return TokenSums(total, targets.new_full((), targets.numel()), num_correct)


def projected_cross_entropy(
    project: Callable[[Tensor], Tensor], hidden_states: Tensor, targets: Tensor, vocabulary: int
) -> TokenSums:
    """The same for any head: ``project`` maps (n, H) to logits (n, V); logits are recomputed in the backward pass."""
    total = hidden_states.new_zeros((), dtype=_accumulation_dtype(hidden_states.dtype))
    num_correct = targets.new_zeros(())
    # One pass even where nothing is supervised keeps the graph (and so the ranks' collectives) whole.
    for hidden_chunk, target_chunk in _chunks(hidden_states, targets, vocabulary) or [(hidden_states, targets)]:
        chunk_total, chunk_correct = checkpoint(_chunk_sums, project, hidden_chunk, target_chunk, use_reentrant=False)
        total, num_correct = total + chunk_total, num_correct + chunk_correct
    return TokenSums(total, targets.new_full((), targets.numel()), num_correct)


def _chunk_sums(project: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    logits = project(hidden)
    logits = logits.to(_accumulation_dtype(logits.dtype))
    total = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    return total, (logits.argmax(-1) == targets).sum()


def _accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _chunks(hidden: Tensor, targets: Tensor, vocabulary: int) -> list[tuple[Tensor, Tensor]]:
    size = max(1, CHUNK_ELEMENTS // vocabulary)
    if not targets.numel():
        return []
    return list(zip(torch.split(hidden, size), torch.split(targets, size), strict=True))


class _LinearCrossEntropy(torch.autograd.Function):
    """d total / d logits is softmax - onehot: a chunk's share of every gradient is known as soon as its logits are."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, wanted: tuple[bool, bool, bool]
    ) -> tuple[Tensor, Tensor]:
        dtype = _accumulation_dtype(hidden.dtype)
        grads = (
            torch.zeros_like(hidden) if wanted[0] else None,
            torch.zeros_like(weight, dtype=dtype) if wanted[1] else None,
            torch.zeros_like(weight[:, 0], dtype=dtype) if wanted[2] else None,
        )
        total, num_correct = hidden.new_zeros((), dtype=dtype), targets.new_zeros(())
        # One copy in the compute type for all chunks; nothing to do where the head is held in it.
        head = weight.to(hidden.dtype)
        start = 0
        for chunk, target in _chunks(hidden, targets, weight.shape[0]):
            stop = start + len(chunk)
            logits = torch.nn.functional.linear(chunk, head).to(dtype)
            if bias is not None:
                logits += bias
            highest, likeliest = logits.max(-1)
            num_correct += (likeliest == target).sum()
            own = logits.gather(1, target[:, None])[:, 0]
            # One exponential for the sum and for the gradient: log-sum-exp and softmax each took their own.
            exponentials = logits.sub_(highest[:, None]).exp_()
            sums = exponentials.sum(-1)
            total += (sums.log() + highest - own).sum()
            if any(wanted):
                error = exponentials.div_(sums[:, None])
                error[torch.arange(len(target), device=target.device), target] -= 1
                _accumulate(grads, error, chunk, head, slice(start, stop))
            start = stop
        ctx.save_for_backward(*grads)
        ctx.dtypes = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        ctx.mark_non_differentiable(num_correct)
        return total, num_correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [
            # In float32: on a GPU the factor would else be rounded to the gradient's 16 bits.
            None if grad is None else (grad.to(grad_total.dtype) * grad_total).to(dtype)
            for grad, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return (*scaled, None, None)


def _accumulate(grads: tuple[Tensor | None, ...], error: Tensor, chunk: Tensor, head: Tensor, rows: slice) -> None:
    """Add one chunk's gradients: error (n, V) = d total / d logits, chunk (n, H), head (V, H)."""
    hidden_grad, weight_grad, bias_grad = grads
    narrow = error.to(chunk.dtype)
    if hidden_grad is not None:
        hidden_grad[rows] = narrow @ head
    if weight_grad is not None:
        weight_grad += narrow.T @ chunk
    if bias_grad is not None:
        bias_grad += error.sum(0)
