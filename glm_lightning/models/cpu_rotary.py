"""GLM's rotary positions on a CPU in one pass.

A pair of neighbouring numbers is turned, as a complex number is by a product. transformers writes it as slices of every
second number, a stack and a sum: on a CPU slow as it stands, and slower when it is compiled, as no vector instruction
fits. In float32 and float64 the products and sums are the same; in 16 bits they are rounded once, at the end.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

_PLACES = ("transformers.models.glm.modeling_glm", "transformers.models.glm4.modeling_glm4")
"""Whose rotary positions turn neighbouring numbers, and are a function of this name:"""

_NAME = "apply_rotary_pos_emb"


def use(network: nn.Module) -> None:
    """Let ``network``, and all others of its class in this process, turn states on a CPU this way."""
    for name in {type(module).__module__ for module in network.modules()} & {*_PLACES}:
        written = getattr(sys.modules[name], _NAME)
        if not isinstance(written, functools.partial):
            setattr(sys.modules[name], _NAME, functools.partial(_apply, written))


def _apply(written: Callable[..., Any], query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> Any:
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
