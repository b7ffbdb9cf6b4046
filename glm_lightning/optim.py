"""Optimizer groups and learning-rate schedules: pure functions, called by the methods with what yaml gave."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from glm_lightning.types import UserError, whole_shape

NamedParameters = Iterable[tuple[str, nn.Parameter]]


def parameter_groups(named_parameters: NamedParameters, *, weight_decay: float) -> list[dict[str, object]]:
    """Split parameters into matrices, which decay, and vectors (norms, biases, scales), which do not.

    A matrix of one row or column is a vector: IA3's scales are, which decay would pull from one to zero.
    Sorted by name, so that the order in a checkpoint does not depend on how a network was built.
    """
    named = sorted((item for item in named_parameters if item[1].requires_grad), key=lambda item: item[0])
    # by the shape: what is sharded cannot be squeezed
    is_matrix = {name: sum(size > 1 for size in whole_shape(parameter)) >= 2 for name, parameter in named}
    matrices = [parameter for name, parameter in named if is_matrix[name]]
    vectors = [parameter for name, parameter in named if not is_matrix[name]]
    groups: list[dict[str, object]] = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def adamw(
    named_parameters: NamedParameters,
    *,
    lr: float,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    fused: bool = True,
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter, 2019, arXiv:1711.05101) with weight decay on matrices only.

    ``fused`` is one kernel for all parameters. Raises `UserError` for values outside their range.
    """
    _refuse(lr=lr, weight_decay=weight_decay, betas=betas, eps=eps)
    groups = parameter_groups(named_parameters, weight_decay=weight_decay)
    return torch.optim.AdamW(groups, lr=lr, betas=(betas[0], betas[1]), eps=eps, fused=fused)


def adamw_8bit(
    named_parameters: NamedParameters,
    *,
    lr: float,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    paged: bool = True,
) -> torch.optim.Optimizer:
    """AdamW whose two running averages are held in 8 bits (Dettmers et al. 2022, arXiv:2110.02861), by bitsandbytes.

    ``paged`` lets a GPU that runs out of memory put them into the host's (Dettmers et al. 2023, arXiv:2305.14314); on a
    CPU there is nothing to page to, see `fallbacks`. Tensors of fewer than 4,096 elements keep 32 bits. Raises
    `UserError` for values outside their range.
    """
    from bitsandbytes.optim import AdamW8bit, PagedAdamW8bit

    _refuse(lr=lr, weight_decay=weight_decay, betas=betas, eps=eps)
    groups = parameter_groups(named_parameters, weight_decay=weight_decay)
    on_gpu = all(parameter.is_cuda for group in groups for parameter in group["params"])  # type: ignore[attr-defined]
    kind = PagedAdamW8bit if paged and on_gpu else AdamW8bit
    optimizer: torch.optim.Optimizer = kind(groups, lr=lr, betas=(betas[0], betas[1]), eps=eps)
    optimizer.defaults["paged"] = paged
    return optimizer


def fallbacks(optimizer: torch.optim.Optimizer) -> list[str]:
    """What was asked of an optimizer and is not so on this device."""
    if optimizer.defaults.get("paged") and not optimizer.is_paged:  # type: ignore[attr-defined]
        return ["optimizer.paged: only a GPU's memory can be paged; the optimizer's 8-bit averages stay in memory"]
    return []


def _refuse(*, lr: float, weight_decay: float, betas: tuple[float, float], eps: float) -> None:
    problems = [
        f"optimizer.{key} is {value}: must be {rule}"
        for key, value, rule, fine in (
            ("lr", lr, "above 0", lr > 0),
            ("weight_decay", weight_decay, "0 or more", weight_decay >= 0),
            ("betas", betas, "two numbers in [0, 1)", len(betas) == 2 and all(0 <= beta < 1 for beta in betas)),
            ("eps", eps, "above 0", eps > 0),
        )
        if not fine
    ]
    if problems:
        raise UserError(problems)


def scale_rates(optimizer: torch.optim.Optimizer, factors: Mapping[nn.Parameter, float]) -> None:
    """Multiply the learning rate of each parameter by its factor, before the first step.

    A group is split where its parameters' factors differ; the groups stay in their order, smaller factors first.
    """
    groups = []
    for group in optimizer.param_groups:
        for factor in sorted({factors[parameter] for parameter in group["params"]}):
            members = [parameter for parameter in group["params"] if factors[parameter] == factor]
            groups.append(group | {"params": members, "lr": group["lr"] * factor})
    optimizer.param_groups[:] = groups


def warmup_steps(warmup: float, num_steps: int) -> int:
    """Steps of warm-up: ``warmup`` below 1 is a share of the run, 1 or more a number of steps."""
    return math.ceil(warmup * num_steps) if warmup < 1 else int(warmup)


def cosine(optimizer: torch.optim.Optimizer, *, num_steps: int, warmup: float = 0.0, floor: float = 0.0) -> LambdaLR:
    """Linear warm-up, then half a cosine down to ``floor`` times the peak at the last step."""
    return _scheduled(
        optimizer, num_steps, warmup, lambda share: floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * share))
    )


def linear(optimizer: torch.optim.Optimizer, *, num_steps: int, warmup: float = 0.0, floor: float = 0.0) -> LambdaLR:
    """Linear warm-up, then a straight line down to ``floor`` times the peak at the last step."""
    return _scheduled(optimizer, num_steps, warmup, lambda share: 1 - (1 - floor) * share)


def constant(optimizer: torch.optim.Optimizer, *, num_steps: int, warmup: float = 0.0) -> LambdaLR:
    """Linear warm-up, then the peak to the end."""
    return _scheduled(optimizer, num_steps, warmup, lambda share: 1.0)


def warmup_stable_decay(
    optimizer: torch.optim.Optimizer, *, num_steps: int, warmup: float = 0.0, decay: float = 0.2, floor: float = 0.0
) -> LambdaLR:
    """Linear warm-up, the peak, then a straight line down over the last ``decay`` (a share) of the run.

    Source: Hu et al. 2024, arXiv:2404.06395, with a linear decay.
    """
    if not 0 < decay <= 1:
        raise UserError(f"scheduler.decay is {decay}: must be a share of the run in (0, 1]")
    after = num_steps - warmup_steps(warmup, num_steps)
    width = min(1.0, decay * num_steps / max(1, after))
    return _scheduled(
        optimizer, num_steps, warmup, lambda share: 1 - (1 - floor) * max(0.0, (share - (1 - width)) / width)
    )


def _scheduled(
    optimizer: torch.optim.Optimizer, num_steps: int, warmup: float, after: Callable[[float], float]
) -> LambdaLR:
    """Factor of step ``s`` (0-based): (s + 1) / (w + 1) while s < w, then ``after`` of the share gone since."""
    if warmup < 0:
        raise UserError(f"scheduler.warmup is {warmup}: must be 0 or more (below 1: a share of the run)")
    first = warmup_steps(warmup, num_steps)

    def factor(step: int) -> float:
        if step < first:
            return (step + 1) / (first + 1)
        return after(min(1.0, (step - first) / max(1, num_steps - first)))

    return LambdaLR(optimizer, factor)
