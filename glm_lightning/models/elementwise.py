"""Norms and gated activations in fewer passes over memory, keeping less for the backward pass.

transformers writes them as a dozen operations, each of which reads and writes all states, and keeps what lies between
them until the backward pass. Here each is one step of the graph that keeps its input alone and computes the rest again.
Modules are recognised by their code, which transformers copies from model to model; forward passes give the same bits.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable
from types import CodeType, MethodType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import silu
from transformers.activations import SiLUActivation
from transformers.models.glm.modeling_glm import GlmMLP, GlmRMSNorm
from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeMLP


class Functions(NamedTuple):
    """How norms and gated activations are computed."""

    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    """States (..., D), weight (D,) and what is added to the mean of squares, to (..., D)."""
    silu_mul: Callable[[Tensor, Tensor], Tensor]
    """Gate and up (..., F) to silu(gate) up."""
    silu_mul_of_halves: Callable[[Tensor], Tensor]
    """The same for (..., 2 F), gate before up."""


def use(network: nn.Module, functions: Functions | None = None) -> Counter[str]:
    """Let norms and gated activations of ``network`` be computed by ``functions`` (ours), and count them by kind."""
    forwards = _forwards(functions or OURS)
    found: Counter[str] = Counter()
    for module in network.modules():
        forward = forwards.get(_computation(type(module)))
        activation = getattr(module, "activation_fn", getattr(module, "act_fn", None))
        if forward is None or not isinstance(activation, nn.SiLU | SiLUActivation | None):
            continue
        module.forward = MethodType(forward, module)
        found["RMSNorm" if activation is None else "SwiGLU"] += 1
    return found


def _computation(kind: type[nn.Module]) -> tuple[Any, ...]:
    """What tells whether two classes compute the same: the code of ``forward``, without its name and place."""
    code: CodeType | None = getattr(inspect.unwrap(kind.forward), "__code__", None)
    return () if code is None else (code.co_code, code.co_names, code.co_varnames, code.co_consts)


_KNOWN = tuple(map(_computation, (GlmRMSNorm, GlmMLP, Glm4MoeMLP)))
"""As they are written: what someone else has put in their place by the time it is used stays."""


def _forwards(functions: Functions) -> dict[tuple[Any, ...], Callable[..., Tensor]]:
    """By what the modules compute, their forward methods by ``functions``."""

    def norm(self: Any, hidden_states: Tensor) -> Tensor:
        return functions.rms_norm(hidden_states, self.weight, self.variance_epsilon)

    def gated_by_half(self: Any, hidden_states: Tensor) -> Tensor:
        return cast(Tensor, self.down_proj(functions.silu_mul_of_halves(self.gate_up_proj(hidden_states))))

    def gated(self: Any, x: Tensor) -> Tensor:
        return cast(Tensor, self.down_proj(functions.silu_mul(self.gate_proj(x), self.up_proj(x))))

    return dict(zip(_KNOWN, (norm, gated_by_half, gated), strict=True))


def rms_norm(states: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Zhang and Sennrich 2019 (arXiv:1910.07467), equation 4, in float32 as transformers has it."""
    if torch.compiler.is_compiling():  # what the compiler fuses by itself
        wide = states.to(torch.float32)
        return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(states.dtype)
    return cast(Tensor, _RmsNorm.apply(states, weight, eps))  # type: ignore[no-untyped-call]


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """SwiGLU without its products, after Shazeer 2020 (arXiv:2002.05202), equation 5."""
    return silu(gate) * up if torch.compiler.is_compiling() else _SiluMul.apply(gate, up)  # type: ignore[no-untyped-call]


def silu_mul_of_halves(states: Tensor) -> Tensor:
    """The same where both lie in one tensor, and so do their gradients."""
    if torch.compiler.is_compiling():
        return silu_mul(*states.chunk(2, dim=-1))
    return cast(Tensor, _SiluMulOfHalves.apply(states))  # type: ignore[no-untyped-call]


OURS = Functions(rms_norm, silu_mul, silu_mul_of_halves)


class _RmsNorm(torch.autograd.Function):
    """y = w x r with r = (mean(x^2) + eps)^-1/2 over D; for g = w d loss / d y: dx = r g - x r^3 sum(g x) / D."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = states.to(torch.float32)
        normed = wide.pow(2)
        scale = torch.rsqrt(normed.mean(-1, keepdim=True) + eps)
        normed = torch.mul(wide, scale, out=normed).to(states.dtype)
        ctx.save_for_backward(states, weight, scale)
        return normed.mul_(weight) if weight.dtype == normed.dtype else normed * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, scale = ctx.saved_tensors
        wide = states.to(torch.float32)
        grad_weight = grad_states = None
        if ctx.needs_input_grad[1]:
            normed = (wide * scale).to(torch.promote_types(torch.float32, grad.dtype))
            grad_weight = normed.mul_(grad).flatten(0, -2).sum(0).to(weight.dtype)
        if ctx.needs_input_grad[0]:
            own = grad.to(torch.float32) * weight.to(torch.float32)
            along = (own * wide).sum(-1, keepdim=True).mul_(scale.pow(3)).div_(-wide.shape[-1])
            grad_states = own.mul_(scale).addcmul_(wide, along).to(states.dtype)
        return grad_states, grad_weight, None


class _SiluMul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        grads = torch.empty_like(gate), torch.empty_like(up)
        _differentiate(grad, gate, up, *grads)
        return grads


class _SiluMulOfHalves(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor) -> Tensor:
        ctx.save_for_backward(states)
        gate, up = states.chunk(2, dim=-1)
        return silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (states,) = ctx.saved_tensors
        grads = torch.empty_like(states)
        _differentiate(grad, *states.chunk(2, dim=-1), *grads.chunk(2, dim=-1))
        return grads


def _differentiate(grad: Tensor, gate: Tensor, up: Tensor, grad_gate: Tensor, grad_up: Tensor) -> None:
    """Write the gradients of gate and up."""
    torch.ops.aten.silu.out(gate, out=grad_up).mul_(grad)
    torch.mul(grad, up, out=grad_gate)
    torch.ops.aten.silu_backward.grad_input(grad_gate, gate, grad_input=grad_gate)
