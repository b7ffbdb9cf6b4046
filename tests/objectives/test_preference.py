"""Losses of pairs through a network, against the plainest code that gives them."""

from __future__ import annotations

import contextlib
import copy
import math

import numpy as np
import pytest
import torch
from tiny_pairs import PAIRS, batch_of, network
from torch.nn.functional import log_softmax

from glm_lightning.objectives.base import Setup, Stage
from glm_lightning.objectives.preference import PairPreference
from glm_lightning.types import IGNORE, Batch, UserError

VARIANTS = {
    "dpo": {"beta": 0.3},
    "dpo-smoothed": {"variant": "dpo", "beta": 0.3, "label_smoothing": 0.1},
    "dpo-with-likelihood": {"variant": "dpo", "beta": 0.3, "likelihood": 0.7},
    "ipo": {"variant": "ipo", "beta": 0.2},
    "simpo": {"variant": "simpo", "beta": 2.0, "gamma": 0.6},
    "orpo": {"variant": "orpo", "beta": 0.2},
}


def answer_log_probs(model, prompt, answer):
    """Log-probability of each token of an answer, one row at a time, all logits held."""
    ids = torch.tensor([prompt + answer])
    log_probs = log_softmax(model(input_ids=ids).logits[0].double(), -1)
    return torch.stack([log_probs[len(prompt) + i - 1, token] for i, token in enumerate(answer)])


def naive(model, reference, pair, *, variant="dpo", beta, gamma=0.0, label_smoothing=0.0, likelihood=None):
    """The loss of one pair as its paper writes it."""
    prompt, chosen, rejected = pair
    w, l = (answer_log_probs(model, prompt, answer) for answer in (chosen, rejected))  # noqa: E741
    with torch.no_grad():
        rw, rl = (answer_log_probs(reference, prompt, answer) for answer in (chosen, rejected))
    log_sigmoid = torch.nn.functional.logsigmoid
    if variant == "dpo":
        h = beta * ((w.sum() - rw.sum()) - (l.sum() - rl.sum()))
        loss = -(1 - label_smoothing) * log_sigmoid(h) - label_smoothing * log_sigmoid(-h)
    elif variant == "ipo":
        loss = ((w.mean() - rw.mean()) - (l.mean() - rl.mean()) - 1 / (2 * beta)) ** 2
    elif variant == "simpo":
        loss = -log_sigmoid(beta * (w.mean() - l.mean()) - gamma)
    else:
        odds = [each.mean().exp() / (1 - each.mean().exp()) for each in (w, l)]
        loss = -beta * log_sigmoid((odds[0] / odds[1]).log()) - w.mean()
    return loss - (0.0 if likelihood is None else likelihood) * w.mean()


def begun(objective, model, reference=None):
    """The objective with ``model`` as its base, or another network where one is given."""

    @contextlib.contextmanager
    def base():
        kept = copy.deepcopy(model.state_dict())
        model.load_state_dict((reference or model).state_dict())
        yield
        model.load_state_dict(kept)

    objective.begin(
        Stage(network=model, base=base, adapter=True, base_key="", precision="64-true", device="cpu", ahead=None)
    )
    return objective


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", VARIANTS)
def test_loss_and_gradients_are_those_of_the_papers(name, packed):
    knobs = VARIANTS[name]
    model, reference = network(seed=0), network(seed=1)
    expected = sum(naive(model, reference, pair, **knobs) for pair in PAIRS)
    theirs = torch.autograd.grad(expected, list(model.parameters()))
    objective = begun(PairPreference(**knobs, reference="live"), model, reference)
    loss = objective.loss(model, batch_of(PAIRS, packed=packed))
    ours = torch.autograd.grad(loss.total, list(model.parameters()))
    assert loss.count == len(PAIRS)
    torch.testing.assert_close(loss.total, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


def test_what_is_measured_is_what_it_is_called():
    model, reference = network(seed=0), network(seed=1)
    objective = begun(PairPreference(beta=0.3, reference="live"), model, reference)
    loss = objective.loss(model, batch_of(PAIRS))
    values = []
    with torch.no_grad():
        for prompt, *answers in PAIRS:
            values.append([
                [float(answer_log_probs(net, prompt, answer).sum()) for answer in answers]
                for net in (model, reference)
            ])  # fmt: skip
    policy, base = np.array(values).transpose(1, 0, 2)
    rewards = 0.3 * (policy - base)
    expected = {
        "accuracy": float((rewards[:, 0] > rewards[:, 1]).sum()),
        "margin": (rewards[:, 0] - rewards[:, 1]).sum(),
        "reward_chosen": rewards[:, 0].sum(),
        "reward_rejected": rewards[:, 1].sum(),
        "logp_chosen": policy[:, 0].sum(),
        "logp_rejected": policy[:, 1].sum(),
    }
    assert {name: float(value) for name, value in loss.sums.items()} == pytest.approx(expected)
    assert set(loss.sums) == set(PairPreference.metrics)


def test_before_anything_is_learned_the_loss_is_that_of_a_coin():
    model = network(seed=0)
    loss = begun(PairPreference(), model).loss(model, batch_of(PAIRS))
    assert float(loss.total.detach()) == pytest.approx(len(PAIRS) * math.log(2))
    assert loss.sums["accuracy"] == 0


def test_a_filler_costs_and_teaches_nothing():
    model = network(seed=0)
    for variant in ("dpo", "ipo", "simpo", "orpo"):
        loss = begun(PairPreference(variant=variant), model).loss(model, batch_of([]))
        assert (float(loss.total.detach()), int(loss.count)) == (0, 0)
        gradients = torch.autograd.grad(loss.total, list(model.parameters()), allow_unused=True)
        assert all(gradient is None or (gradient == 0).all() for gradient in gradients)
        assert any(gradient is not None for gradient in gradients)


def test_what_was_kept_is_used_instead_of_the_base():
    model, reference = network(seed=0), network(seed=1)
    live = begun(PairPreference(reference="live"), model, reference).loss(model, batch_of(PAIRS))
    kept = {}

    def ahead(compute, *, key, each):
        assert each == "sample"
        kept.update(compute(batch_of(PAIRS)))

    objective = PairPreference(reference="cached")
    objective.begin(
        Stage(
            network=reference, base=contextlib.nullcontext, adapter=True, base_key="", precision="", device="cpu",
            ahead=ahead,
        )
    )  # fmt: skip
    batch = batch_of(PAIRS)
    batch.given = {"reference": kept["reference"].detach()}
    torch.testing.assert_close(objective.loss(model, batch).total, live.total, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("knobs", "problem"),
    [
        ({"beta": 0.0}, "objective.beta is 0.0: must be above 0"),
        ({"label_smoothing": 0.5}, r"objective.label_smoothing is 0.5: must be in \[0, 0.5\)"),
        ({"variant": "ipo", "label_smoothing": 0.1}, "only dpo and simpo take it"),
        ({"likelihood": -1.0}, "objective.likelihood is -1.0: must be 0 or more"),
    ],
)
def test_values_outside_their_range_are_refused(knobs, problem):
    with pytest.raises(UserError, match=problem):
        PairPreference(**knobs)


def test_a_base_that_is_trained_cannot_be_asked_in_every_step():
    assert "set objective.reference=cached" in next(PairPreference(reference="live").clashes(Setup(adapter=False)))
    assert not list(PairPreference(reference="live").clashes(Setup(adapter=True)))
    assert not list(PairPreference(reference="live", variant="orpo").clashes(Setup(adapter=False)))


@pytest.mark.filterwarnings("default")  # TRL's are its own
@pytest.mark.parametrize(("variant", "loss_type"), [("dpo", "sigmoid"), ("ipo", "ipo")])
def test_equals_trl(chatml, tmp_path, variant, loss_type):
    """TRL's own batch of its own rows through TRL's `DPOTrainer` and through ours, on the same two networks."""
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    policy, reference = (network(seed=seed, dtype=torch.float32, vocabulary=448) for seed in (0, 1))
    rows = [
        {"prompt": "Who are you?", "chosen": " I am an assistant.", "rejected": " The lazy dog."},
        {"prompt": "材质#棉", "chosen": "这条裙子很好看，面料舒适，显瘦。", "rejected": "你好！"},
        {"prompt": "The quick brown fox", "chosen": " jumps", "rejected": " jumps over the lazy dog. 0123"},
    ]
    arguments = trl.DPOConfig(
        output_dir=str(tmp_path), loss_type=loss_type, beta=0.3, per_device_train_batch_size=3, max_length=None,
        disable_dropout=True, report_to=[], use_cpu=True, bf16=False,
    )  # fmt: skip
    trainer = trl.DPOTrainer(
        policy, ref_model=reference, args=arguments, train_dataset=datasets.Dataset.from_list(rows),
        processing_class=chatml.hf,
    )  # fmt: skip
    inputs = next(iter(trainer.get_train_dataloader()))
    theirs = trainer.compute_loss(policy, dict(inputs))
    their_gradients = torch.autograd.grad(theirs, list(policy.parameters()))

    order = torch.arange(6).reshape(2, 3).T.flatten()  # theirs: all chosen, then all rejected
    ids, mask = inputs["input_ids"][order], inputs["completion_mask"][order]
    sequences = torch.arange(6)[:, None].expand_as(ids)
    labels = ids.masked_fill(mask == 0, IGNORE)
    lengths = inputs["attention_mask"][order].sum(1)
    batch = Batch.of(ids, labels, lengths, step_tokens=3, rows=range(3), sequences=sequences)
    objective = begun(PairPreference(variant=variant, beta=0.3, reference="live"), policy, reference)
    ours = objective.loss(policy, batch).total / 3
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), abs=1e-5)
    torch.testing.assert_close(
        torch.autograd.grad(ours, list(policy.parameters())), their_gradients, rtol=1e-4, atol=1e-5
    )
