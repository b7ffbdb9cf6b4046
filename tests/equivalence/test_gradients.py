"""The gradient of a step against other splits of it, and against plain torch and transformers."""

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import GlmForCausalLM

from glm_lightning.methods.base import Method


@pytest.fixture
def first_step(train, monkeypatch):
    """Run one optimizer step; gives its unclipped gradients by name, its micro-batches' rows, and its samples."""

    def run(name, *more):
        gradients, rows, samples = {}, [], []
        training_step, clipping = Method.training_step, Method.configure_gradient_clipping

        def remember_rows(self, batch, batch_idx):
            rows.append(list(batch.rows))
            samples.extend(self.trainer.datamodule.splits.train.sample(row) for row in batch.rows)
            return training_step(self, batch, batch_idx)

        def remember_gradients(self, *args, **kwargs):
            gradients.update({name: p.grad.clone() for name, p in self.trained().items()})
            clipping(self, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(Method, "training_step", remember_rows)
            patch.setattr(Method, "configure_gradient_clipping", remember_gradients)
            train(name, "trainer.precision=32-true", "trainer.max_steps=1", "data.pad_to_multiple=1", *more)
        return gradients, rows, samples

    return run


def relative_difference(one, other):
    """Norm of the difference over the norm, all tensors as one vector."""
    assert one.keys() == other.keys()
    flat = torch.cat([one[name].double().flatten() for name in sorted(one)])
    return float((flat - torch.cat([other[name].double().flatten() for name in sorted(other)])).norm() / flat.norm())


def naive(folder, samples, *, mean_of_means=False):
    """Each row by itself through transformers, all logits, torch's own cross-entropy."""
    network = GlmForCausalLM.from_pretrained(folder, dtype=torch.float32)
    losses, counts = [], []
    for sample in samples:
        ids, labels = torch.tensor([sample.input_ids]), torch.tensor(sample.labels)
        logits = network(input_ids=ids).logits[0]
        losses.append(cross_entropy(logits[:-1], labels[1:], ignore_index=-100, reduction="sum"))
        counts.append(int((labels[1:] != -100).sum()))
    if mean_of_means:
        loss = sum(total / count for total, count in zip(losses, counts, strict=True)) / len(losses)
    else:
        loss = sum(losses) / sum(counts)
    loss.backward()
    return {f"network.{name}": parameter.grad for name, parameter in network.named_parameters()}


@pytest.mark.parametrize("method", ["lora", "full"])
def test_one_micro_batch_equals_eight(first_step, method):
    whole, whole_rows, _ = first_step("whole", f"method={method}", "trainer.accumulate_grad_batches=1")
    single, single_rows, _ = first_step("single", f"method={method}", "trainer.accumulate_grad_batches=8")
    assert [len(rows) for rows in whole_rows] == [8]
    assert len(single_rows) == 8
    assert sum(map(len, single_rows)) == 8
    assert sorted(whole_rows[0]) == sorted(row for rows in single_rows for row in rows)
    assert relative_difference(whole, single) < 1e-6


@pytest.mark.parametrize("accumulate", [1, 3, 8])
def test_equals_plain_transformers_and_torch(first_step, tiny_glm, accumulate):
    ours, _, samples = first_step("ours", "method=full", f"trainer.accumulate_grad_batches={accumulate}")
    assert len(samples) == 8
    assert relative_difference(naive(tiny_glm, samples), ours) < 1e-6
    # what a mean of row means would give is far outside the tolerance
    assert relative_difference(naive(tiny_glm, samples, mean_of_means=True), ours) > 1e-2
