"""Tensors of which every rank holds a part, and ordinary ones, handled alike."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


def is_zero(tensor: Tensor) -> bool:
    """Whether it is a parameter that DeepSpeed has cut in parts."""
    return hasattr(tensor, "ds_id")


def is_engines(parameter: Tensor) -> bool:
    """Whether DeepSpeed's engine takes the parameter's gradient as soon as there is one."""
    return hasattr(parameter, "_z3_optimizer") or hasattr(parameter, "_hp_mapping")


def is_part(tensor: Tensor) -> bool:
    """Whether this rank holds a part of it only."""
    return isinstance(tensor, DTensor) or is_zero(tensor)


def whole(tensor: Tensor) -> Tensor:
    """An ordinary tensor as it is; a sharded one put together, which all ranks must ask for at the same time."""
    if is_zero(tensor):
        with _together(tensor):
            return tensor.detach().clone()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def copied(tensor: Tensor) -> Tensor:
    """A copy that `assign` takes back."""
    return whole(tensor) if is_zero(tensor) else tensor.detach().clone()


def own_part(tensor: Tensor) -> Tensor:
    """What this rank holds of it."""
    if is_zero(tensor):
        return cast(Tensor, cast(Any, tensor).ds_tensor)
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def assign(tensor: Tensor, value: Tensor) -> None:
    """Copy a whole ``value``, which may be on another device and of another type, into ``tensor``."""
    with torch.no_grad(), _together(tensor):
        tensor.copy_(like(tensor, value))


@contextlib.contextmanager
def _together(tensor: Tensor) -> Iterator[None]:
    """While it is entered, a parameter that DeepSpeed has cut is whole; what every rank makes of it is kept."""
    if not is_zero(tensor):
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([tensor], modifier_rank=0):
        yield


def like(tensor: Tensor, value: Tensor) -> Tensor:
    """``value``, which every rank has whole, in parts as ``tensor`` is; nothing is sent."""
    if not isinstance(tensor, DTensor) or isinstance(value, DTensor):
        return value
    return distribute_tensor(value, tensor.device_mesh, tensor.placements, src_data_rank=None)


def gathered(value: Any, *, keep: bool) -> Any:
    """Nested dicts and lists with every sharded tensor put together, one at a time, on the CPU of those that ``keep``.

    The others get tensors without values: nowhere but there is there room for all of them.
    """
    if isinstance(value, Tensor) and is_part(value):
        full = whole(value).detach()
        return full.cpu() if keep else full.to("meta")
    if isinstance(value, nn.Parameter):
        return value.detach()
    if isinstance(value, dict):
        return {key: gathered(item, keep=keep) for key, item in value.items()}
    return [gathered(item, keep=keep) for item in value] if isinstance(value, list) else value
