"""Answers that the student writes itself, against sums made row by row."""

from __future__ import annotations

import pytest
import torch
from test_distill import begun, naive, wider
from tiny_pairs import VOCABULARY, network

from glm_lightning.objectives.base import Setup
from glm_lightning.objectives.distill import Distill
from glm_lightning.objectives.on_policy import chosen
from glm_lightning.training.teaching import _written
from glm_lightning.types import IGNORE, Batch, UserError

ANSWERS = {7: [5, 9, 1], 8: [11], 4: [3, 3, 3, 3, 3, 3, 1]}


def rows(*samples):
    """A batch of samples 7, 8, 4 or some of them: prompts of 4 to 6 tokens, answers in one or in two turns."""
    lengths = {7: 9, 8: 7, 4: 10, -1: 5}
    ids, labels = torch.zeros(len(samples), 10, dtype=torch.long), torch.full((len(samples), 10), IGNORE)
    for row, sample in enumerate(samples):
        generator = torch.Generator().manual_seed(sample + 1)
        ids[row, : lengths[sample]] = torch.randint(2, VOCABULARY, (lengths[sample],), generator=generator)
        for learned in [slice(2, 3), slice(6, 9)] if sample == 7 else [slice(4, lengths[sample])] * (sample >= 0):
            labels[row, learned] = ids[row, learned]
    return Batch.of(ids, labels, torch.tensor([lengths[s] for s in samples]), step_tokens=1, rows=list(samples))


def write(network, prompts, *, draws, seed, max_new_tokens):
    assert [len(prompt) for prompt in prompts] == [{7: 6, 8: 4, 4: 4}[draw] for draw in draws]
    return [ANSWERS[draw] for draw in draws]


def alone(student, teacher, sample, *, own, share):
    """The loss of one sample, its answer written by the student or as it stands."""
    if not own:
        return naive(student, teacher, rows(sample), divergence="forward_kl", cross_entropy_share=share)
    before, answer = rows(sample), torch.tensor([ANSWERS[sample]])
    prompt = before.input_ids[:, : {7: 6, 8: 4, 4: 4}[sample]]
    ids = torch.cat([prompt, answer], dim=1)
    labels = torch.cat([torch.full_like(prompt, IGNORE), answer], dim=1)
    made = Batch.of(ids, labels, torch.tensor([ids.shape[1]]), step_tokens=1, rows=[sample])
    each = naive(student, teacher, made, divergence="forward_kl") / answer.numel()
    return each * before.targets.numel()


@pytest.mark.parametrize("share", [1.0, 0.5, 0.0])
def test_the_loss_is_that_of_each_sample_alone(share):
    student, teacher = network(seed=0).train(), wider()
    objective, _, _ = begun(teacher, write=write, on_policy=share, cross_entropy=0.3)
    objective.seed = 6
    batch = rows(7, 8, -1, 4)
    own = {sample: sample in {batch.rows[row] for row in chosen(batch, share=share, seed=6)} for sample in ANSWERS}
    assert set(own.values()) == {1.0: {True}, 0.5: {True, False}, 0.0: {False}}[share]
    loss = objective.loss(student, batch)
    expected = sum(alone(student, teacher, sample, own=own[sample], share=0.3) for sample in ANSWERS)
    torch.testing.assert_close(loss.total, expected, rtol=1e-10, atol=0)
    assert loss.count == batch.targets.numel()
    parameters = list(student.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(loss.total, parameters), torch.autograd.grad(expected, parameters), rtol=1e-8, atol=1e-11
    )


def test_validation_is_of_what_stands_in_the_data():
    student, teacher = network(seed=0).eval(), wider()
    losses = [
        begun(teacher, write=write, on_policy=share)[0].loss(student, rows(7, 8, 4)).total for share in (0.0, 1.0)
    ]
    assert losses[0] == losses[1]


def test_what_is_written_does_not_depend_on_the_split():
    """The writer of runs: the same answers in one batch or in several, other ones in another step."""
    student, teacher = network(seed=0).train(), wider()

    def real(network, prompts, **how):
        return _written(network, prompts, **how, stop_ids=[1])

    def total(seed, *batches):
        objective, _, _ = begun(teacher, write=real, on_policy=0.7, on_policy_tokens=12)
        objective.seed = seed
        return sum(objective.loss(student, batch).total for batch in batches)

    whole = total(3, rows(7, 8, 4))
    torch.testing.assert_close(whole, total(3, rows(4), rows(8, -1), rows(7)), rtol=1e-10, atol=0)
    assert abs(float((whole - total(4, rows(7, 8, 4))).detach())) > 1e-3
    assert student.training


def test_a_stop_token_is_part_of_what_is_written():
    how = {"draws": [0], "seed": 1, "max_new_tokens": 6}
    (free,) = _written(network(seed=0), [[5, 6]], **how, stop_ids=[])
    (ended,) = _written(network(seed=0), [[5, 6]], **how, stop_ids=[free[2]])
    assert len(free) == 6
    assert ended == free[: free.index(free[2]) + 1]


@pytest.mark.parametrize(
    ("knobs", "problem"),
    [
        ({"on_policy": 1.5}, r"on_policy is 1\.5: must be in \[0, 1\]"),
        ({"on_policy": 0.5, "on_policy_tokens": 0}, r"on_policy_tokens is 0: must be 1 or more"),
        ({"on_policy": 0.5, "top_k": 8}, r"set objective\.top_k=null"),
        ({"on_policy": 0.5, "hidden_states": 1.0}, r"set objective\.hidden_states=0"),
    ],
)
def test_knobs_that_cannot_be(knobs, problem):
    with pytest.raises(UserError, match=problem):
        Distill(teacher="teacher", **knobs)


@pytest.mark.parametrize(
    ("setup", "advice"),
    [
        ({"packing": True}, "data.packing=false"),
        ({"compiled": True}, "model.compile=false"),
        ({"sharded": True}, "trainer=ddp"),
    ],
)
def test_what_does_not_go_with_it(setup, advice):
    (problem,) = Distill(teacher="teacher", on_policy=0.5).clashes(Setup(adapter=True, **setup))
    assert problem.endswith(advice)
    assert not list(Distill(teacher="teacher").clashes(Setup(adapter=True, **setup)))
    assert not Distill(teacher="teacher", on_policy=0.5).packs
