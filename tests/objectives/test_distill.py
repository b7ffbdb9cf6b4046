"""Distillation through two networks, against full logits and torch's own functions."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tiny_pairs import VOCABULARY, network
from torch.distributions import Categorical, kl_divergence
from torch.nn.functional import cross_entropy
from transformers import GlmConfig, GlmForCausalLM

from glm_lightning.losses import chunks
from glm_lightning.objectives.base import Stage
from glm_lightning.objectives.distill import Distill
from glm_lightning.types import IGNORE, Batch, UserError


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_ELEMENTS", 4 * VOCABULARY)


@dataclass
class Known:
    """A teacher that is loaded already."""

    network: Any
    fingerprint: str = "teacher"
    loads: int = 0

    @property
    def config(self):
        return self.network.config

    def load(self, device):
        self.loads += 1
        return self.network.eval()


def wider(*, vocabulary=VOCABULARY):
    """A teacher of other sizes."""
    torch.manual_seed(7)
    config = GlmConfig(
        vocab_size=vocabulary, hidden_size=48, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=12, pad_token_id=0, eos_token_id=1, attention_bias=True,
    )  # fmt: skip
    made = GlmForCausalLM(config).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.2)
    return made


def batch(*, empty=False):
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(2, VOCABULARY, (3, 9), generator=generator)
    labels = ids.clone()
    labels[:, :4] = IGNORE
    if empty:
        labels[:] = IGNORE
    return Batch.of(ids, labels, torch.full((3,), 9), step_tokens=1, rows=range(3))


def begun(teacher, *, ahead=None, student=None, write=None, **knobs):
    objective = Distill(teacher="teacher", **knobs)
    known = Known(teacher)
    objective.take(known, write)
    extra = objective.extra(student) if student is not None else None
    objective.begin(
        Stage(
            network=student, base=contextlib.nullcontext, adapter=True, base_key="", precision="64-true", device="cpu",
            ahead=ahead,
        )
    )  # fmt: skip
    return objective, known, extra


def naive(student, teacher, sample, *, divergence, temperature=1.0, cross_entropy_share=0.0, weight=0.5):
    """The sum over supervised positions with all logits held."""
    labels = torch.full_like(sample.input_ids, IGNORE).flatten()
    labels[sample.where] = sample.targets
    kept = labels != IGNORE
    logits, asked = (net(input_ids=sample.input_ids).logits.flatten(0, 1)[kept] for net in (student, teacher))
    asked = asked[:, : logits.shape[1]].detach()
    p, q = Categorical(logits=asked / temperature), Categorical(logits=logits / temperature)
    if divergence == "forward_kl":
        each = kl_divergence(p, q)
    elif divergence == "reverse_kl":
        each = kl_divergence(q, p)
    else:
        middle = Categorical(probs=weight * p.probs + (1 - weight) * q.probs)
        each = weight * kl_divergence(p, middle) + (1 - weight) * kl_divergence(q, middle)
    likelihood = cross_entropy(logits, labels[kept], reduction="sum")
    return (1 - cross_entropy_share) * temperature**2 * each.sum() + cross_entropy_share * likelihood


KNOBS = [
    {"divergence": "forward_kl"},
    {"divergence": "reverse_kl", "temperature": 2.0},
    {"divergence": "jensen_shannon", "js_weight": 0.2},
    {"divergence": "forward_kl", "temperature": 3.0, "cross_entropy": 0.4},
]


def expected_of(student, teacher, sample, knobs):
    given = dict(knobs)
    share, weight = given.pop("cross_entropy", 0.0), given.pop("js_weight", 0.5)
    return naive(student, teacher, sample, **given, cross_entropy_share=share, weight=weight)


@pytest.mark.parametrize("vocabulary", [VOCABULARY, VOCABULARY + 5])
@pytest.mark.parametrize("knobs", KNOBS, ids=lambda knobs: "-".join(map(str, knobs.values())))
def test_loss_and_gradients_are_those_of_full_logits(knobs, vocabulary):
    student, teacher, sample = network(seed=0), wider(vocabulary=vocabulary), batch()
    objective, _, _ = begun(teacher, **{"cross_entropy": 0.0, **knobs})
    loss = objective.loss(student, sample)
    expected = expected_of(student, teacher, sample, knobs)
    torch.testing.assert_close(loss.total, expected, rtol=1e-10, atol=0)
    parameters = list(student.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(loss.total, parameters), torch.autograd.grad(expected, parameters), rtol=1e-8, atol=1e-11
    )
    assert loss.count == sample.targets.numel()


def kept_of(teacher, sample, **knobs):
    """The objective that has asked its teacher about ``sample``, and the batch with what is kept."""
    given = {}

    def ahead(compute, *, key, each):
        assert each == "token"
        given.update(compute(sample))

    objective, known, _ = begun(teacher, ahead=ahead, **knobs)
    sample.given = given
    return objective, known


@pytest.mark.parametrize("knobs", KNOBS, ids=lambda knobs: "-".join(map(str, knobs.values())))
def test_the_whole_vocabulary_on_disk_is_the_live_teacher(knobs):
    student, teacher = network(seed=0, dtype=torch.float32), wider().float()
    knobs = {"cross_entropy": 0.0, **knobs}
    live = begun(teacher, **knobs)[0].loss(student, batch()).total
    sample = batch()
    objective, _ = kept_of(teacher, sample, **knobs, top_k=VOCABULARY, top_k_dtype="float32")
    kept = objective.loss(student, sample).total
    assert float((kept - live).abs().detach()) / float(live.abs().detach()) < 1e-6
    parameters = list(student.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(kept, parameters), torch.autograd.grad(live, parameters), rtol=1e-4, atol=1e-5
    )


def test_the_more_is_kept_the_nearer_the_loss():
    student, teacher = network(seed=0), wider()
    live = float(begun(teacher, cross_entropy=0.0)[0].loss(student, batch()).total.detach())
    losses = []
    for k in (1, 4, 16, 48):
        sample = batch()
        objective, _ = kept_of(teacher, sample, cross_entropy=0.0, top_k=k, top_k_dtype="float32")
        losses.append(float(objective.loss(student, sample).total.detach()))
    assert losses == sorted(losses)
    assert losses[-1] <= live + 1e-6


@pytest.mark.parametrize("k", [4, VOCABULARY])
def test_how_much_of_the_teacher_is_kept_is_told(k):
    sample, teacher = batch(), wider(vocabulary=VOCABULARY)
    objective, _ = kept_of(teacher, sample, top_k=k, top_k_dtype="float32")
    kept = objective.loss(network(seed=0), sample).sums["kept_probability"].detach()
    # nothing is kept twice: what the entries hold together, counted from them
    assert float(kept) == pytest.approx(float(sample.given["log_probs"].detach().exp().sum()), rel=1e-5)
    assert (float(kept) == pytest.approx(len(sample.targets))) is (k == VOCABULARY)


def test_what_is_on_disk_already_needs_no_teacher():
    _, known, _ = begun(wider(), ahead=lambda *args, **how: None, top_k=4)
    assert known.loads == 0


def test_hidden_states_that_are_the_teachers_are_at_no_distance():
    student, sample = network(seed=0), batch()
    objective, _, extra = begun(network(seed=0), student=student, hidden_states=1.0, cross_entropy=0.0)
    extra.double()
    loss = objective.loss(student, sample)
    assert float(loss.sums["hidden_states"].detach()) == pytest.approx(0.0, abs=1e-20)
    assert [tuple(each.weight.shape) for each in extra.maps] == [(32, 32)] * 2


def test_projections_take_the_students_width_to_the_teachers_and_learn():
    student, teacher, sample = network(seed=0), wider(), batch()
    objective, _, extra = begun(teacher, student=student, hidden_states=0.5, cross_entropy=0.0)
    extra.double()
    assert extra.partners == [2, 4]
    assert [tuple(each.weight.shape) for each in extra.maps] == [(48, 32)] * 2
    loss = objective.loss(student, sample)
    states = [net(input_ids=sample.input_ids, output_hidden_states=True).hidden_states for net in (student, teacher)]
    expected = 0.0
    for layer, partner, each in zip((1, 2), extra.partners, extra.maps, strict=True):
        ours, theirs = (
            of[number].flatten(0, 1)[sample.where] for of, number in zip(states, (layer, partner), strict=True)
        )
        expected += (((each(ours) - theirs) ** 2).sum(-1) / (theirs**2).sum(-1)).sum() / 2
    torch.testing.assert_close(loss.sums["hidden_states"], expected, rtol=1e-5, atol=0)
    without = begun(teacher, cross_entropy=0.0)[0].loss(student, sample).total
    torch.testing.assert_close(loss.total, without + 0.5 * loss.sums["hidden_states"], rtol=1e-10, atol=0)
    assert all(gradient.abs().sum() > 0 for gradient in torch.autograd.grad(loss.total, list(extra.parameters())))


def test_a_filler_costs_and_teaches_nothing():
    student = network(seed=0)
    objective, _, extra = begun(wider(), student=student, hidden_states=0.5)
    extra.double()
    loss = objective.loss(student, batch(empty=True))
    gradients = torch.autograd.grad(loss.total, [*student.parameters(), *extra.parameters()], allow_unused=True)
    assert float(loss.total.detach()) == 0
    assert all(gradient is None or (gradient == 0).all() for gradient in gradients)
    assert gradients[-1] is not None


def test_the_teacher_gets_no_gradients():
    student, teacher = network(seed=0), wider()
    objective, _, _ = begun(teacher)
    objective.loss(student, batch()).total.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize(
    ("knobs", "problem"),
    [
        ({"js_weight": 1.0}, "objective.js_weight is 1.0"),
        ({"temperature": 0.0}, "objective.temperature is 0.0: must be above 0"),
        ({"cross_entropy": 1.0}, "for 1 take objective=sft"),
        ({"top_k": 0}, "objective.top_k is 0"),
        ({"hidden_states": 1.0, "top_k": 4}, "hidden states are not kept on disk"),
    ],
)
def test_values_outside_their_range_are_refused(knobs, problem):
    with pytest.raises(UserError, match=problem):
        Distill(teacher="teacher", **knobs)
