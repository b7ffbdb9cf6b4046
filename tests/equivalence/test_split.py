"""However a step is split over micro-batches and processes, the result is the same."""

import json

import pytest
from tiny_runs import largest_difference, validation_losses, weights


@pytest.mark.parametrize("method", ["lora", "full"])
def test_eight_at_once_equals_eight_times_one(train, method):
    whole = train("whole", f"method={method}", "trainer.accumulate_grad_batches=1")
    single = train("single", f"method={method}", "trainer.accumulate_grad_batches=8")
    assert largest_difference(weights(whole), weights(single)) < 1e-10
    assert validation_losses(whole) == pytest.approx(validation_losses(single), rel=1e-6)


def test_two_processes_equal_one(train, train_py):
    one = train("one", "trainer.accumulate_grad_batches=8")
    two = train_py("two", "trainer=ddp_cpu", "trainer.accumulate_grad_batches=4")
    assert largest_difference(weights(one), weights(two)) < 1e-10
    assert validation_losses(one) == pytest.approx(validation_losses(two), rel=1e-6)


def test_the_test_would_see_a_wrong_mean(train, monkeypatch):
    """A mean of micro-batch means, as other tools take it, is far outside the tolerance."""
    from glm_lightning.methods.base import Method

    whole = train("exact", "trainer.accumulate_grad_batches=8")

    original = Method.training_step

    def mean_of_means(self, batch, batch_idx):
        original(self, batch, batch_idx)  # counts what is logged
        loss = self.ingredients.objective.loss(self.network, batch)
        return loss.total / loss.count

    monkeypatch.setattr(Method, "training_step", mean_of_means)
    wrong = train("wrong", "trainer.accumulate_grad_batches=8")
    assert largest_difference(weights(whole), weights(wrong)) > 1e-5


def test_two_processes_answer_as_one(train, train_py):
    knobs = ("data.test=5", "evaluation.max_new_tokens=6", "trainer.max_steps=1", "trainer.accumulate_grad_batches=4")
    one, two = train("one", *knobs), train_py("two", "trainer=ddp_cpu", *knobs)
    answers = [json.loads(run.before.read_text(encoding="utf-8"))["answers"] for run in (one, two)]
    assert answers[0] == answers[1]
    assert len(answers[0]) == 5
    assert one.read_report()["before"] == pytest.approx(two.read_report()["before"])
