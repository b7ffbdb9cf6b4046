"""LoRA's product as one step of the graph: the same numbers as PEFT's modules in fewer passes over memory.

PEFT runs a frozen layer, two small ones, a scaling and a sum, each with its own pass forwards and backwards, and lifts
the input to the type of its float32 matrices on the way. Here the update is added into the layer's own result
forwards, and into the gradient of its input backwards; the input is kept once, in the type that is computed in.
"""

from __future__ import annotations

from collections.abc import Callable
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
    product: Any = _opaque if torch.compiler.is_compiling() else _LoraLinear.apply
    result, _ = product(rows, weight.to(dtype), own_bias, a, b, scaling)
    return cast(Tensor, result.unflatten(0, x.shape[:-1]))


def _product(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
) -> tuple[Tensor, Tensor]:
    """The result y = x W^T + bias + s (x A^T) B^T, and x A^T."""
    inner = x @ a.T.to(x.dtype)
    return torch.nn.functional.linear(x, weight, bias).addmm_(inner, b.T.to(x.dtype), alpha=scaling), inner


def _gradients(
    grad: Tensor, x: Tensor, weight: Tensor, a: Tensor, b: Tensor, inner: Tensor, scaling: float, of_x: bool
) -> list[Tensor]:
    """With g = d loss / d y: dA = s (g B)^T x, dB = s g^T (x A^T), and where it is wanted dx = g W + s g B A."""
    through = (grad @ b.to(grad.dtype)).mul_(scaling)
    found = [(through.T @ x).to(a.dtype), (grad.T @ inner).mul_(scaling).to(b.dtype)]
    return [*found, (grad @ weight).addmm_(through, a.to(grad.dtype))] if of_x else found


def _differentiate(ctx: Any, gradients: Callable[..., list[Tensor]], grad: Tensor) -> tuple[Tensor | None, ...]:
    of_x = ctx.needs_input_grad[0]
    grad_a, grad_b, *rest = gradients(grad, *ctx.saved_tensors, ctx.scaling, of_x)
    return rest[0] if of_x else None, None, None, grad_a, grad_b, None


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, _, a, b, ctx.scaling = inputs
    ctx.save_for_backward(x, weight, a, b, output[1])
    ctx.mark_non_differentiable(output[1])


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor]:
        return _product(*inputs)

    setup_context = staticmethod(_keep)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return _differentiate(ctx, _gradients, grad)


# The same as an operator of torch's own kind: a compiler that looked inside would copy each result before the update is
# added, where here it is added in place, and would build a kernel for each conversion of the small matrices.
_opaque = torch.library.custom_op("glm_lightning::lora_linear", _product, mutates_args=())
_opaque_gradients = torch.library.custom_op("glm_lightning::lora_linear_backward", _gradients, mutates_args=())
_opaque.register_fake(_product)
_opaque_gradients.register_fake(_gradients)
_opaque.register_autograd(lambda ctx, grad, _: _differentiate(ctx, _opaque_gradients, grad), setup_context=_keep)


def _is_plain(layer: Linear) -> bool:
    base = layer.base_layer
    return (
        type(base) is nn.Linear
        and not any(parameter.requires_grad for parameter in base.parameters())
        and not layer.lora_variant
        and not any(layer.lora_bias.values())
        and all(type(dropout) is nn.Identity for dropout in layer.lora_dropout.values())
    )
