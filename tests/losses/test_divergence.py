"""Divergences against torch's own and by hand; what a cache of the likeliest tokens loses."""

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from glm_lightning.losses.divergence import DIVERGENCES, divergence, events, likeliest

VOCABULARY, POSITIONS = 40, 6


def distributions(dtype=torch.float64, scale=2.0):
    generator = torch.Generator().manual_seed(0)
    return [
        (scale * torch.randn(POSITIONS, VOCABULARY, dtype=dtype, generator=generator)).log_softmax(-1) for _ in "pq"
    ]


def by_hand(p, q, kind, weight):
    p, q = (Categorical(logits=each) for each in (p, q))
    if kind == "forward_kl":
        return kl_divergence(p, q)
    if kind == "reverse_kl":
        return kl_divergence(q, p)
    middle = Categorical(probs=weight * p.probs + (1 - weight) * q.probs)
    return weight * kl_divergence(p, middle) + (1 - weight) * kl_divergence(q, middle)


@pytest.mark.parametrize("weight", [0.1, 0.5])
@pytest.mark.parametrize("kind", DIVERGENCES)
def test_values_and_gradients_are_those_of_the_definitions(kind, weight):
    p, q = distributions()
    results = []
    for function in (divergence, lambda *args, kind, weight: by_hand(*args, kind, weight)):
        logits = q.clone().requires_grad_()
        values = function(p, logits.log_softmax(-1), kind=kind, weight=weight)
        (gradient,) = torch.autograd.grad(values.sum(), logits)
        results.append((values, gradient))
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-12)
    assert (results[0][0] > 0).all()


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_nothing_diverges_from_itself(kind):
    p, _ = distributions()
    torch.testing.assert_close(divergence(p, p, kind=kind), torch.zeros(POSITIONS, dtype=p.dtype), rtol=0, atol=1e-12)


def test_jensen_shannon_tends_to_the_kl_divergences():
    p, q = distributions()
    near_0 = divergence(p, q, kind="jensen_shannon", weight=1e-6) / 1e-6
    near_1 = divergence(p, q, kind="jensen_shannon", weight=1 - 1e-6) / 1e-6
    torch.testing.assert_close(near_0, divergence(p, q, kind="forward_kl"), rtol=1e-3, atol=0)
    torch.testing.assert_close(near_1, divergence(p, q, kind="reverse_kl"), rtol=1e-3, atol=0)


@pytest.mark.parametrize("kind", DIVERGENCES)
@pytest.mark.parametrize("k", [VOCABULARY, VOCABULARY + 7])
def test_the_whole_vocabulary_loses_nothing(kind, k):
    p, q = distributions(torch.float32)
    logits = q.clone().requires_grad_()
    kept = likeliest(p, k)
    assert (kept.rest == float("-inf")).all()
    ours = divergence(*events(logits.log_softmax(-1), kept), kind=kind)
    theirs = divergence(p, logits.log_softmax(-1), kind=kind)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
    gradients = [torch.autograd.grad(each.sum(), logits, retain_graph=True)[0] for each in (ours, theirs)]
    assert gradients[0].isfinite().all()
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_fewer_events_never_diverge_more_and_the_more_the_nearer(kind):
    p, q = distributions()
    whole = divergence(p, q, kind=kind)
    lost = [(whole - divergence(*events(q, likeliest(p, k)), kind=kind)) for k in (1, 4, 16, 32)]
    assert all((each > -1e-12).all() for each in lost)
    means = [float(each.mean()) for each in lost]
    assert means == sorted(means, reverse=True)


def test_the_mass_of_all_others_is_kept_exactly_where_it_is_small():
    p, _ = distributions(torch.float32, scale=30.0)
    kept = likeliest(p, 30)
    exact = likeliest(p.double(), 30).rest
    assert (exact < -25).any()  # 1 - (sum over the likeliest) is 0 there in float32
    torch.testing.assert_close(kept.rest.double(), exact, rtol=1e-5, atol=1e-4)


def test_what_has_no_probability_has_no_share():
    p = torch.tensor([[0.0, float("-inf")]])
    q = torch.tensor([[-0.5, -0.9]]).log_softmax(-1).requires_grad_()
    for kind in ("forward_kl", "jensen_shannon"):
        value = divergence(p, q, kind=kind)
        (gradient,) = torch.autograd.grad(value.sum(), q)
        assert value.isfinite().all()
        assert gradient.isfinite().all()
