"""Parameters that are trained: the type they are trained in, and whether stored ones are theirs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from glm_lightning.types import whole_shape


def misfits(trained: Mapping[str, nn.Parameter], stored: Mapping[str, Tensor], *, of: str) -> list[str]:
    """Why ``stored`` values are not those of ``trained`` parameters, by name: missing, surplus, or of another shape.

    ``of`` says where they come from.
    """
    problems = [f"{of}: {name} is missing" for name in sorted(trained.keys() - stored.keys())]
    problems += [f"{of}: {name} is not trained by this method" for name in sorted(stored.keys() - trained.keys())]
    problems += [
        f"{of}: {name} has shape {tuple(stored[name].shape)}, the network {tuple(whole_shape(parameter))}"
        for name, parameter in trained.items()
        if name in stored and stored[name].shape != whole_shape(parameter)
    ]
    return problems


def fingerprint(values: Mapping[str, Tensor] | None) -> list[str]:
    """Names values; nothing names none."""
    if values is None:
        return []
    return [f"{name} {value.double().sum().item()} {value.double().norm().item()}" for name, value in values.items()]


def widen(network: nn.Module) -> None:
    """Hold what is trained in 32 bits at least: small updates would round away in 16."""
    for parameter in network.parameters():
        if parameter.requires_grad and parameter.dtype in (torch.float16, torch.bfloat16):
            parameter.data = parameter.data.float()
