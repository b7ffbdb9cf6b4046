"""The chunked loss against torch's own over full logits."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from glm_lightning.losses import chunks, linear_cross_entropy, projected_cross_entropy
from glm_lightning.types import IGNORE, Batch

VOCABULARY = 50


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_ELEMENTS", 5 * VOCABULARY)
    monkeypatch.setattr(chunks, "CPU_BLOCK_ELEMENTS", 2 * VOCABULARY)


def example(dtype=torch.float64, *, trained=True):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 7, 16, dtype=dtype, generator=generator, requires_grad=True)
    weight = torch.randn(VOCABULARY, 16, dtype=dtype, generator=generator, requires_grad=trained)
    bias = torch.randn(VOCABULARY, dtype=dtype, generator=generator, requires_grad=trained)
    labels = torch.randint(0, VOCABULARY, (3, 7), generator=generator)
    labels[0, :4] = labels[1, 5:] = IGNORE
    return hidden, weight, bias, labels


def supervised(hidden, labels):
    batch = Batch.of(labels, labels, torch.full((3,), 7), step_tokens=1, rows=range(3))
    return hidden.flatten(0, 1).index_select(0, batch.where), batch.targets


def naive(hidden, weight, bias, labels):
    logits = (hidden @ weight.T + bias)[:, :-1].reshape(-1, VOCABULARY)
    return cross_entropy(logits, labels[:, 1:].reshape(-1), ignore_index=IGNORE, reduction="sum"), logits


def test_value_gradients_and_counts_are_those_of_full_logits():
    hidden, weight, bias, labels = example()
    expected, logits = naive(hidden, weight, bias, labels)
    sums = linear_cross_entropy(supervised(hidden, labels)[0], weight, bias, supervised(hidden, labels)[1])
    torch.testing.assert_close(sums.total, expected, rtol=1e-12, atol=0)
    targets = labels[:, 1:].reshape(-1)
    assert sums.num_tokens == (targets != IGNORE).sum()
    assert sums.num_correct == (logits.argmax(-1) == targets).sum()
    ours = torch.autograd.grad(3 * sums.total, (hidden, weight, bias))
    theirs = torch.autograd.grad(3 * expected, (hidden, weight, bias))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_any_head_gives_the_same_as_weight_and_bias():
    hidden, weight, bias, labels = example()
    states, targets = supervised(hidden, labels)
    one = linear_cross_entropy(states, weight, bias, targets)
    other = projected_cross_entropy(lambda x: x @ weight.T + bias, states, targets, VOCABULARY)
    torch.testing.assert_close(tuple(one), tuple(other), rtol=1e-12, atol=0)
    inputs = (hidden, weight, bias)
    torch.testing.assert_close(
        torch.autograd.grad(one.total, inputs, retain_graph=True), torch.autograd.grad(other.total, inputs)
    )


def test_frozen_head_gets_no_gradient_buffer():
    hidden, weight, bias, labels = example(trained=False)
    states, targets = supervised(hidden, labels)
    saved = linear_cross_entropy(states, weight, bias, targets).total.grad_fn.saved_tensors
    assert [None if tensor is None else tensor.shape for tensor in saved] == [states.shape, None, None]


def test_validation_builds_no_gradient():
    hidden, weight, bias, labels = example()
    with torch.no_grad():
        states, targets = supervised(hidden, labels)
        assert linear_cross_entropy(states, weight, bias, targets).total.grad_fn is None


def test_gradients_in_bfloat16_are_those_of_full_logits():
    hidden, weight, bias, labels = example(torch.bfloat16)
    states, targets = supervised(hidden, labels)
    ours = torch.autograd.grad(linear_cross_entropy(states, weight, bias, targets).total, (hidden, weight, bias))
    wide = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight, bias)]
    theirs = torch.autograd.grad(naive(*wide, labels)[0], wide)
    for own, other in zip(ours, theirs, strict=True):
        assert (own - other).norm() < 0.02 * other.norm()


def test_bfloat16_sums_in_float32():
    hidden, weight, bias, labels = example(torch.bfloat16)
    states, targets = supervised(hidden, labels)
    ours = linear_cross_entropy(states, weight, bias, targets).total
    exact, _ = naive(hidden.double(), weight.double(), bias.double(), labels)
    assert ours.dtype == torch.float32
    # the logits themselves are bfloat16: 8 bits of mantissa on values around 10
    torch.testing.assert_close(ours.double(), exact, rtol=3e-3, atol=0)


def test_nothing_supervised_is_zero_with_zero_gradients():
    hidden, weight, bias, labels = example()
    states, targets = supervised(hidden, torch.full_like(labels, IGNORE))
    for sums in (
        linear_cross_entropy(states, weight, bias, targets),
        projected_cross_entropy(lambda x: x @ weight.T + bias, states, targets, VOCABULARY),
    ):
        assert sums.total == 0
        assert sums.num_tokens == 0
        gradients = torch.autograd.grad(sums.total, (hidden, weight), retain_graph=True)
        assert all((gradient == 0).all() for gradient in gradients)
