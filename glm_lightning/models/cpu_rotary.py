"""GLM's rotary positions on a CPU in one pass.

A pair of neighbouring numbers is turned, as a complex number is by a product. transformers writes it as slices of every
second number, a stack and a sum: on a CPU slow as it stands, and slower when it is compiled, as no vector instruction
fits. In float32 and float64 the products and sums are the same; in 16 bits they are rounded once, at the end.
"""

from __future__ import annotations

import functools
import inspect
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.glm.modeling_glm import GlmAttention
from transformers.models.glm4.modeling_glm4 import Glm4Attention

_NAME = "apply_rotary_pos_emb"

_FORWARDS = {inspect.unwrap(kind.forward) for kind in (GlmAttention, Glm4Attention)}
"""They turn neighbouring numbers, and call a function of this name for it."""


def use(network: nn.Module) -> None:
    """Let ``network`` turn states on a CPU this way."""
    for module in network.modules():
        if (forward := inspect.unwrap(type(module).forward)) in _FORWARDS:
            module.forward = MethodType(_turning(forward), module)


@functools.cache
def _turning(forward: FunctionType) -> FunctionType:
    """``forward`` with this rotation for the one in its file, which all other networks go on using."""
    names = forward.__globals__
    # the compiler reads names of a function that says where it is from there
    own = {name: value for name, value in names.items() if name != "__name__"}
    own[_NAME] = functools.partial(_apply, names[_NAME])
    changed = FunctionType(forward.__code__, own, forward.__name__, forward.__defaults__, forward.__closure__)
    changed.__kwdefaults__ = forward.__kwdefaults__
    return changed


def _apply(written: FunctionType, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> Any:
    """Query (B, h, T, D) and key (B, h_kv, T, D), the first R numbers of each turned; cos and sin (B, T, R)."""
    if query.device.type != "cpu":
        return written(query, key, cos, sin)
    return _rotate(query, cos, sin), _rotate(key, cos, sin)


# An operator of torch's own kind, so that a compiled layer can call it and need not look inside.
@torch.library.custom_op("glm_lightning::rotate", mutates_args=(), device_types="cpu")
def _rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    width = cos.shape[-1]
    wide = torch.promote_types(states.dtype, torch.float32)
    turn = torch.complex(cos[..., : width // 2].to(wide), sin[..., : width // 2].to(wide)).unsqueeze(1)
    result = states.new_empty(states.shape)
    pairs = _pairs(states[..., :width].to(wide))
    if wide == states.dtype:
        torch.mul(pairs, turn, out=_pairs(result[..., :width]))
    else:
        result[..., :width] = torch.view_as_real(pairs.mul_(turn)).flatten(-2)
    result[..., width:] = states[..., width:]
    return result


@_rotate.register_fake
def _(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return states.new_empty(states.shape)


def _pairs(states: Tensor) -> Tensor:
    return torch.view_as_complex(states.unflatten(-1, (-1, 2)))


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    cos, sin = ctx.saved_tensors
    return _rotate(grad, cos, -sin), None, None


_rotate.register_autograd(_differentiate, setup_context=_keep)
