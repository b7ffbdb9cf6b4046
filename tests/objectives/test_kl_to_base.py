"""Nearness to the base: cross-entropy, and the divergence from what the network says with its adapter off."""

import sys
from pathlib import Path

import pytest
import torch

from glm_lightning.objectives.base import Stage
from glm_lightning.objectives.sft import SFT
from glm_lightning.types import Batch

sys.path.append(str(Path(__file__).resolve().parents[1] / "methods"))
import tiny_families as tiny


def batch_of():
    ids = tiny.ids(3, 14)
    where = torch.tensor([2, 3, 20, 30])
    return Batch(ids, where, ids.flatten()[where + 1], torch.tensor([14, 14, 14]), step_tokens=4, rows=[0, 1, 2])


def naive(network, base, batch, weight):
    logits = network(input_ids=batch.input_ids, use_cache=False).logits.flatten(0, 1)[batch.where].log_softmax(-1)
    with torch.no_grad(), base():
        of_base = network(input_ids=batch.input_ids, use_cache=False).logits.flatten(0, 1)[batch.where].log_softmax(-1)
    likelihood = -logits.gather(-1, batch.targets[:, None]).sum()
    return likelihood + weight * (of_base.exp() * (of_base - logits)).sum()


KNOBS = {"ptuning_v2": {"dropout": 0.0}}


@pytest.mark.parametrize("name", ["lora", "ptuning_v2", "ia3"])
@pytest.mark.parametrize("family", ["glm", "chatglm"])
def test_it_is_what_a_naive_loss_gives(family, name):
    method = tiny.made(name, tiny.network_of(family).train(), **KNOBS.get(name, {}))
    network = method.network.double()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in method.trained().values():
            parameter += 0.1 * torch.randn_like(parameter)
    objective, batch = SFT(kl_to_base=0.7), batch_of()
    objective.begin(
        Stage(network, method.without_adaptation, True, "", "64-true", torch.device("cpu"), lambda *_, **__: None)
    )
    loss = objective.loss(network, batch)
    expected = naive(network, method.without_adaptation, batch, 0.7)
    torch.testing.assert_close(loss.total, expected, rtol=1e-9, atol=1e-9)
    assert loss.sums["kl_to_base"] > 1e-4
    trained = list(method.trained().values())
    ours, theirs = (torch.autograd.grad(total, trained, allow_unused=True) for total in (loss.total, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


def test_validation_is_cross_entropy_alone():
    network = tiny.made("lora", tiny.network_of("glm").train()).network
    network.eval()
    with torch.no_grad():
        near, plain = (objective.loss(network, batch_of()) for objective in (SFT(kl_to_base=1.0), SFT()))
    assert torch.equal(near.total, plain.total)
    assert set(near.sums) == {"token_accuracy"}
