"""Optimizer groups and schedules."""

import math

import pytest
import torch
from torch import nn

from glm_lightning import optim
from glm_lightning.types import UserError


def rates(schedule, num_steps, **knobs):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = schedule(optimizer, num_steps=num_steps, **knobs)
    seen = []
    for _ in range(num_steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_only_matrices_decay():
    network = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    network[0].bias.requires_grad_(False)
    optimizer = optim.adamw(network.named_parameters(), lr=1e-3, weight_decay=0.1)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays == {id(network[0].weight): 0.1, id(network[1].weight): 0.0, id(network[1].bias): 0.0}


def test_adamw_names_every_bad_value_at_once():
    with pytest.raises(UserError) as caught:
        optim.adamw([("w", nn.Parameter(torch.zeros(2, 2)))], lr=-1, betas=(0.9, 1.5))
    assert [problem.split()[0] for problem in caught.value.problems] == ["optimizer.lr", "optimizer.betas"]


@pytest.mark.parametrize("schedule", [optim.cosine, optim.linear, optim.constant, optim.warmup_stable_decay])
def test_warm_up_rises_to_the_peak(schedule):
    seen = rates(schedule, 20, warmup=4)
    assert seen[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates(schedule, 20, warmup=0.2) == seen


def test_cosine_follows_its_formula_to_the_floor():
    seen = rates(optim.cosine, 10, floor=0.1)
    expected = [0.1 + 0.9 * (1 + math.cos(math.pi * s / 10)) / 2 for s in range(10)]
    assert seen == pytest.approx(expected)


def test_linear_falls_evenly():
    assert rates(optim.linear, 4) == pytest.approx([1, 0.75, 0.5, 0.25])


def test_warmup_stable_decay_has_three_parts():
    seen = rates(optim.warmup_stable_decay, 10, warmup=2, decay=0.4)
    assert seen == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25])


@pytest.mark.parametrize("knobs", [{"warmup": -1.0}])
def test_bad_warm_up_is_named(knobs):
    with pytest.raises(UserError, match=r"scheduler\.warmup is -1"):
        rates(optim.cosine, 5, **knobs)


def test_bad_decay_is_named():
    with pytest.raises(UserError, match=r"scheduler\.decay is 0"):
        rates(optim.warmup_stable_decay, 5, decay=0)
