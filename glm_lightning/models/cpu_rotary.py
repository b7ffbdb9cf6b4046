"""GLM's rotary positions on a CPU in few passes, to the same bits.

A pair of neighbouring numbers is turned, as a complex number is by a product. transformers writes it as slices of every
second number, a stack and a sum: on a CPU slow as it stands, and slower when it is compiled, as no vector instruction
fits. Here a pair is one integer while its halves change places; what is rounded, and when, is as transformers has it.
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
    return _rotate(query, key, cos, sin, False)


# An operator of torch's own kind, so that a compiled layer can call it and need not look inside.
@torch.library.custom_op("glm_lightning::rotate", mutates_args=(), device_types="cpu")
def _rotate(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, back: bool) -> tuple[Tensor, Tensor]:
    """(x, y) cos + (-y, x) sin for each pair; ``back``: turned the other way."""
    cos, sin = (table[..., : table.shape[-1] // 2].unsqueeze(1) for table in (cos, sin))
    signed = (sin, -sin) if back else (-sin, sin)
    tables = cos.repeat_interleave(2, dim=-1), torch.stack(signed, -1).flatten(-2)
    return _turned(query, *tables), _turned(key, *tables)


@_rotate.register_fake
def _(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, back: bool) -> tuple[Tensor, Tensor]:
    return _empty(query), _empty(key)


def _turned(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    result, width = _empty(states), cos.shape[-1]
    own = states[..., :width]
    torch.add(own * cos, _swapped(own) * sin, out=result[..., :width])
    result[..., width:] = states[..., width:]
    return result


def _empty(states: Tensor) -> Tensor:
    """Of the shape (B, h, T, D), lying as (B, T, h, D), which linear layers give and, backwards, take."""
    batch, heads, length, width = states.shape
    return states.new_empty(batch, length, heads, width).transpose(1, 2)


def _swapped(states: Tensor) -> Tensor:
    """Neighbouring numbers change places."""
    whole = _WHOLE.get(states.dtype.itemsize)
    if whole is None:
        return torch.flip(states.unflatten(-1, (-1, 2)), (-1,)).flatten(-2)
    if states.stride(-1) != 1 or any(number % 2 for number in (states.storage_offset(), *states.stride()[:-1])):
        states = states.contiguous()  # where no pair begins in the middle of such an integer
    half, pairs = 8 * states.dtype.itemsize, states.view(whole)
    low = torch.bitwise_right_shift(pairs, half).bitwise_and_((1 << half) - 1)
    return torch.bitwise_left_shift(pairs, half).bitwise_or_(low).view(states.dtype)


_WHOLE = {2: torch.int32, 4: torch.int64}
"""By the bytes of a number the integer that holds two: shifting its halves is quicker than moving numbers."""


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, _, cos, sin, _ = inputs
    ctx.save_for_backward(cos, sin)


def _differentiate(ctx: Any, grad_query: Tensor, grad_key: Tensor) -> tuple[Tensor | None, ...]:
    return *_rotate(grad_query, grad_key, *ctx.saved_tensors, True), None, None, None


_rotate.register_autograd(_differentiate, setup_context=_keep)
