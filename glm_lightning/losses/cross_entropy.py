"""Cross-entropy of the next token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from glm_lightning.losses import chunks
from glm_lightning.losses.chunks import (
    accumulate,
    accumulate_bias,
    accumulation_dtype,
    empty_gradients,
    in_compute_type,
)


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
    hidden_states = in_compute_type(hidden_states)
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

    def sums(logits: Tensor, rows: slice) -> Tensor:
        total = torch.nn.functional.cross_entropy(logits, targets[rows], reduction="sum")
        return torch.stack([total, (logits.argmax(-1) == targets[rows]).sum().to(total)])

    total, num_correct = chunks.projected_sums(project, hidden_states, sums, vocabulary)
    return TokenSums(total, targets.new_full((), targets.numel()), num_correct.detach().to(targets.dtype))


class _LinearCrossEntropy(torch.autograd.Function):
    """d total / d logits is softmax - onehot: no graph is needed to find it."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, wanted: tuple[bool, bool, bool]
    ) -> tuple[Tensor, Tensor]:
        dtype = accumulation_dtype(hidden.dtype)
        grads = empty_gradients(hidden, weight, wanted, dtype)
        losses, num_correct = hidden.new_empty(len(targets), dtype=dtype), targets.new_zeros(())
        # One copy in the compute type for all chunks; nothing to do where the head is held in it.
        head = weight.to(hidden.dtype)
        places = chunks.slices(len(targets), len(weight))
        # One tensor for the logits of all chunks, and then for their errors: each new one would be made of new pages.
        held = hidden.new_empty(places[0].stop if places else 0, len(weight))
        for rows in places:
            chunk = hidden[rows]
            logits = torch.mm(chunk, head.T, out=held[: len(chunk)])
            for part in chunks.blocks(len(chunk), len(weight), kind=hidden.device.type):
                target, block = targets[rows][part], logits[part].to(dtype)
                if bias is not None:
                    block += bias
                highest, likeliest = block.max(-1)
                num_correct += (likeliest == target).sum()
                own = block.gather(1, target[:, None])[:, 0]
                # One exponential for the sum and for the gradient: log-sum-exp and softmax each took their own.
                exponentials = block.sub_(highest[:, None]).exp_()
                sums = exponentials.sum(-1)
                losses[rows][part] = sums.log() + highest - own
                if any(wanted):
                    error = exponentials.div_(sums[:, None])
                    error[torch.arange(len(target), device=target.device), target] -= 1
                    accumulate_bias(grads, error)
                    logits[part] = error
            if any(wanted):
                accumulate(grads, logits, chunk, head, rows)
        total = losses.sum()
        ctx.save_for_backward(*grads)
        ctx.dtypes = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        ctx.mark_non_differentiable(num_correct)
        return total, num_correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return (*chunks.scaled_gradients(ctx.saved_tensors, grad_total, ctx.dtypes), None, None)
