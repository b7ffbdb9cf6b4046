"""GLM's rotary positions on a CPU in few passes, to the same bits.

A pair of neighbouring numbers is turned, as a complex number is by a product. transformers writes it as slices of every
second number, a stack and a sum: on a CPU slow as it stands, and slower when it is compiled, as no vector instruction
fits. Here the numbers change places by a complex product; what is rounded, and when, is as transformers has it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
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


def _apply(written: Callable[..., Any], query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> Any:
    """Query (B, h, T, D) and key (B, h_kv, T, D), the first R numbers of each turned; cos and sin (B, T, R)."""
    if query.device.type != "cpu":
        return written(query, key, cos, sin)
    return _rotate(query, cos, sin), _rotate(key, cos, sin)


# An operator of torch's own kind, so that a compiled layer can call it and need not look inside.
@torch.library.custom_op("glm_lightning::rotate", mutates_args=(), device_types="cpu")
def _rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    width, kind = cos.shape[-1], torch.promote_types(states.dtype, cos.dtype)
    cos, sin = (table[..., : width // 2].unsqueeze(1) for table in (cos, sin))
    result = states.new_empty(states.shape)
    result[..., width:] = states[..., width:]
    turned = states[..., :width].to(kind)
    along = turned * cos.repeat_interleave(2, dim=-1)
    # (a + b i) (0 + s i) is (-b s) + (a s) i, whether or not the product is fused with the sum
    wide = torch.promote_types(kind, torch.float32)
    by = torch.complex(torch.zeros_like(sin, dtype=wide), sin.to(wide))
    across = torch.view_as_real(_pairs(turned.to(wide)) * by)
    result[..., :width] = along.add_(across.flatten(-2).to(kind))
    return result


@_rotate.register_fake
def _(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return states.new_empty(states.shape)


def _pairs(states: Tensor) -> Tensor:
    states = states if states.stride(-1) == 1 else states.contiguous()
    return torch.view_as_complex(states.unflatten(-1, (-1, 2)))


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    cos, sin = ctx.saved_tensors
    return _rotate(grad, cos, -sin), None, None


_rotate.register_autograd(_differentiate, setup_context=_keep)
