"""What tests of runs whose ranks hold parts of the whole share."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import largest_difference, weights


def optimizer(run):
    """Its averages, whole, by name."""
    stored = load_file(run.last / "optimizer.safetensors")
    return {name: tensor for name, tensor in stored.items() if "exp_avg" in name}


def losses(run):
    lines = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    return [(line["step"], line[key]) for line in lines for key in ("train/loss", "train/grad_norm") if key in line]


def counts(run, rank):
    return json.loads((run.path / f"counts.{rank}.json").read_text(encoding="utf-8"))


def assert_equal(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def assert_same_training(one, two, *, within=1e-10, rel=1e-9):
    """Weights and averages to ``within``, losses, norms and metrics to ``rel`` of themselves."""
    assert largest_difference(weights(one), weights(two)) < within
    assert largest_difference(optimizer(one), optimizer(two)) < within
    for (step, value), (other_step, other) in zip(losses(one), losses(two), strict=True):
        assert (step, value) == (other_step, pytest.approx(other, rel=rel))
    assert one.read_report()["metrics"] == pytest.approx(two.read_report()["metrics"], rel=rel)
