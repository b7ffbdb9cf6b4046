"""LoRA's product as one step of the graph: the same numbers as PEFT's modules in fewer passes over memory.

PEFT runs a frozen layer, two small ones, a scaling and a sum, each with its own pass forwards and backwards, and lifts
the input to the type of its float32 matrices on the way. Here the update is added into the layer's own result
forwards, and into the gradient of its input backwards; the input is kept once, in the type that is computed in.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def fuse(network: nn.Module) -> None:
    """Let every plain LoRA layer of ``network`` over an ordinary, frozen linear layer run as one step.

    The modules stay PEFT's in name, weights, merging and saving. Left as they are: layers with dropout, DoRA or a bias
    of their own, and those over quantised weights, which are another class.
    """
    for module in network.modules():
        if type(module) is Linear and _is_plain(module):
            module.__class__ = FusedLinear


class FusedLinear(Linear):
    """PEFT's layer, whose usual case (one adapter, switched on, not merged) is computed by `lora_linear`."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As PEFT's: x (..., K) to (..., O)."""
        names = self.active_adapters
        if args or kwargs or self.disable_adapters or self.merged or len(names) != 1 or names[0] not in self.lora_A:
            return super().forward(x, *args, **kwargs)
        base: Any = self.base_layer
        down, up = (cast(nn.Linear, part[names[0]]) for part in (self.lora_A, self.lora_B))
        return lora_linear(x, base.weight, base.bias, down.weight, up.weight, self.scaling[names[0]])


def lora_linear(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """X W^T + bias + scaling (x A^T) B^T for frozen W and bias.

    x (..., K), weight (O, K), bias (O,) or None, a (r, K), b (O, r); the result is of the type that autocast computes
    in, or else of ``weight``'s, and the gradients of a and b of their own.
    """
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    own_bias = None if bias is None else bias.to(dtype)
    rows = x.to(dtype).flatten(0, -2)
    result = _LoraLinear.apply(rows, weight.to(dtype), own_bias, a.to(dtype), b.to(dtype), scaling)  # type: ignore[no-untyped-call]
    return cast(Tensor, result.unflatten(0, x.shape[:-1]))


class _LoraLinear(torch.autograd.Function):
    """y = x W^T + s (x A^T) B^T; with g = d loss / d y: dx = g W + s g B A, dA = s (g B)^T x, dB = s g^T (x A^T)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
    ) -> Tensor:
        inner = x @ a.T
        result = torch.nn.functional.linear(x, weight, bias).addmm_(inner, b.T, alpha=scaling)
        ctx.save_for_backward(x, weight, a, b, inner)
        ctx.scaling = scaling
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, inner = ctx.saved_tensors
        through = (grad @ b).mul_(ctx.scaling)
        grad_x = (grad @ weight).addmm_(through, a) if ctx.needs_input_grad[0] else None
        return grad_x, None, None, through.T @ x, (grad.T @ inner).mul_(ctx.scaling), None


def _is_plain(layer: Linear) -> bool:
    base = layer.base_layer
    return (
        type(base) is nn.Linear
        and not any(parameter.requires_grad for parameter in base.parameters())
        and not layer.lora_variant
        and not any(layer.lora_bias.values())
        and all(type(dropout) is nn.Identity for dropout in layer.lora_dropout.values())
    )
