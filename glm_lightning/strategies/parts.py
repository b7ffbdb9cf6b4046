"""Tensors of which every rank holds a part, and ordinary ones, handled alike."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(tensor: Tensor) -> Tensor:
    """An ordinary tensor as it is; a sharded one put together, which all ranks must ask for at the same time."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """What this rank holds of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def assign(tensor: Tensor, value: Tensor) -> None:
    """Copy a whole ``value``, which may be on another device and of another type, into ``tensor``."""
    with torch.no_grad():
        tensor.copy_(like(tensor, value))


def like(tensor: Tensor, value: Tensor) -> Tensor:
    """``value``, which every rank has whole, in parts as ``tensor`` is; nothing is sent."""
    if not isinstance(tensor, DTensor) or isinstance(value, DTensor):
        return value
    return distribute_tensor(value, tensor.device_mesh, tensor.placements, src_data_rank=None)


def gathered(value: Any, *, keep: bool) -> Any:
    """Nested dicts and lists with every sharded tensor put together, one at a time, on the CPU of those that ``keep``.

    The others get tensors without values: nowhere but there is there room for all of them.
    """
    if isinstance(value, DTensor):
        full = value.full_tensor()
        return full.cpu() if keep else full.to("meta")
    if isinstance(value, dict):
        return {key: gathered(item, keep=keep) for key, item in value.items()}
    return [gathered(item, keep=keep) for item in value] if isinstance(value, list) else value
