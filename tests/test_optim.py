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


def test_scales_in_the_shape_of_a_matrix_do_not_decay():
    scales = [("ia3_keys", nn.Parameter(torch.ones(4, 1))), ("ia3_inner", nn.Parameter(torch.ones(1, 4)))]
    (group,) = optim.parameter_groups(scales, weight_decay=0.1)
    assert group["weight_decay"] == 0


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


def test_rates_are_scaled_by_parameter():
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    optimizer = optim.adamw(network.named_parameters(), lr=1e-3, weight_decay=0.1)
    optim.scale_rates(optimizer, {p: 16.0 if name.startswith("1.") else 1.0 for name, p in network.named_parameters()})
    found = {id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    assert found == {
        id(network[0].weight): (1e-3, 0.1),
        id(network[1].weight): (1.6e-2, 0.1),
        id(network[0].bias): (1e-3, 0.0),
        id(network[1].bias): (1.6e-2, 0.0),
    }
    # a schedule multiplies what it finds
    scheduler = optim.linear(optimizer, num_steps=4)
    optimizer.step()
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.75e-3, 1.2e-2, 0.75e-3, 1.2e-2])


def matrices():
    torch.manual_seed(0)
    network = nn.Linear(128, 64)
    target = torch.randn(64, 128)
    return network, target


def descend(network, target, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        ((network.weight - target) ** 2).mean().backward()
        optimizer.step()
    return float(((network.weight - target) ** 2).mean().detach())


def test_eight_bits_follow_thirty_two():
    plain, target = matrices()
    narrow, _ = matrices()
    full = descend(plain, target, optim.adamw(plain.named_parameters(), lr=1e-2), 30)
    optimizer = optim.adamw_8bit(narrow.named_parameters(), lr=1e-2)
    assert descend(narrow, target, optimizer, 30) == pytest.approx(full, rel=0.02)
    averages = optimizer.state[narrow.weight]
    assert averages["state1"].dtype == averages["state2"].dtype == torch.uint8


def test_eight_bits_decay_matrices_only_and_go_on_where_they_stopped():
    network, target = matrices()
    optimizer = optim.adamw_8bit(network.named_parameters(), lr=1e-2, weight_decay=0.1)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    descend(network, target, optimizer, 3)
    other, _ = matrices()
    other.load_state_dict(network.state_dict())
    resumed = optim.adamw_8bit(other.named_parameters(), lr=1e-2, weight_decay=0.1)
    resumed.load_state_dict(optimizer.state_dict())
    descend(network, target, optimizer, 3)
    descend(other, target, resumed, 3)
    assert torch.equal(network.weight, other.weight)


def test_paging_without_a_gpu_is_told():
    network, _ = matrices()
    (told,) = optim.fallbacks(optim.adamw_8bit(network.named_parameters(), lr=1e-2))
    assert told.startswith("optimizer.paged: only a GPU's memory can be paged")
    assert not optim.fallbacks(optim.adamw_8bit(network.named_parameters(), lr=1e-2, paged=False))
    assert not optim.fallbacks(optim.adamw(network.named_parameters(), lr=1e-2))


def test_adamw_8bit_names_every_bad_value_at_once():
    with pytest.raises(UserError) as caught:
        optim.adamw_8bit([("w", nn.Parameter(torch.zeros(2, 2)))], lr=-1, eps=0)
    assert [problem.split()[0] for problem in caught.value.problems] == ["optimizer.lr", "optimizer.eps"]
