"""Functions of logits in chunks against the same functions of all logits."""

import pytest
import torch

from glm_lightning.losses import chunks

VOCABULARY = 50


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_ELEMENTS", 3 * VOCABULARY)


def example(num_positions=8, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape):
        return torch.randn(*shape, dtype=dtype, generator=generator).requires_grad_()

    factors = torch.randn(num_positions, VOCABULARY, dtype=dtype, generator=generator)
    targets = torch.randint(VOCABULARY, (num_positions,), generator=generator)
    return drawn(num_positions, 16), drawn(VOCABULARY, 16), drawn(VOCABULARY), factors, targets


def of(factors):
    """Sums that are no cross-entropy: a weighted sum of squares, and a count that has no gradient."""

    def function(logits, rows):
        return torch.stack([(factors[rows] * logits**2).sum(), (logits > 0).sum().to(logits)])

    return function


@pytest.mark.parametrize("num_positions", [8, 3, 1, 0])
@pytest.mark.parametrize("kind", ["linear", "projected"])
def test_sums_and_gradients_are_those_of_all_logits(kind, num_positions):
    hidden, weight, bias, factors, _ = example(num_positions)
    logits = hidden @ weight.T + bias
    if kind == "linear":
        total, positive = chunks.linear_sums(hidden, weight, bias, of(factors))
    else:
        total, positive = chunks.projected_sums(lambda x: x @ weight.T + bias, hidden, of(factors), VOCABULARY)
    expected = (factors * logits**2).sum()
    torch.testing.assert_close(total, expected, rtol=1e-12, atol=0)
    assert positive == (logits > 0).sum()
    ours = torch.autograd.grad(3 * total, (hidden, weight, bias))
    theirs = torch.autograd.grad(3 * expected, (hidden, weight, bias))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_a_frozen_head_gets_no_gradient_buffer_and_validation_builds_none():
    hidden, weight, bias, factors, _ = example()
    frozen = chunks.linear_sums(hidden, weight.detach(), bias.detach(), of(factors))
    saved = frozen.grad_fn.next_functions[0][0].next_functions[0][0].saved_tensors
    assert [None if tensor is None else tensor.shape for tensor in saved] == [hidden.shape, None, None]
    with torch.no_grad():
        assert chunks.linear_sums(hidden, weight, bias, of(factors)).grad_fn is None


@pytest.mark.parametrize("num_positions", [8, 0])
def test_log_probabilities_and_gradients_are_those_of_all_logits(num_positions):
    hidden, weight, bias, factors, targets = example(num_positions)
    ours = chunks.projected_log_probs(lambda x: x @ weight.T + bias, hidden, targets, VOCABULARY)
    theirs = (hidden @ weight.T + bias).log_softmax(-1).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    inputs = (hidden, weight, bias)
    torch.testing.assert_close(
        torch.autograd.grad((factors[:, 0] * ours).sum(), inputs),
        torch.autograd.grad((factors[:, 0] * theirs).sum(), inputs),
        rtol=1e-10,
        atol=1e-12,
    )
