"""Weights of the base that are trained themselves: exchanged for a while, written as a whole network."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from glm_lightning.strategies.parts import assign, copied


@contextlib.contextmanager
def exchanged(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> Iterator[None]:
    """While it is entered, each parameter holds its value of ``values``."""
    kept = {name: copied(parameter) for name, parameter in parameters.items()}
    put(parameters, values)
    try:
        yield
    finally:
        put(parameters, kept)


def put(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    """Give each parameter its value of ``values``, which may be on another device and of another type."""
    for name, parameter in parameters.items():
        assign(parameter, values[name])


def write(module: nn.Module | None, folder: Path, *, dtype: torch.dtype) -> None:
    """Write a Hugging Face folder: config.json and safetensors, in the type the base had on disk."""
    network = cast(PreTrainedModel, module)
    # buffers stay as they are: a mixture's routing bias is float32 in every release
    cast_too = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    state = {name: value.to(dtype) if name in cast_too else value for name, value in network.state_dict().items()}
    config_dtype = network.config.dtype
    network.save_pretrained(folder, state_dict=state)
    # which has named the type that the network is held in
    network.config.dtype = dtype
    network.config.save_pretrained(folder)
    network.config.dtype = config_dtype
