from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForCausalLM, PreTrainedModel

from glm_lightning.models import short_attention

SHAPES = [(2, 9, 3, 64, 64), (1, 4, 4, 256, 256), (2, 8, 2, 100, 130), (3, 4, 1, 17, 40), (1, 2, 1, 2, 2)]
"""B, query heads, key heads, queries, keys."""


def states(shape: tuple[int, ...], *, width: int = 32) -> tuple[list[torch.Tensor], torch.Tensor]:
    batch, heads, key_heads, queries, keys = shape
    sizes = [(batch, queries, heads), (batch, keys, key_heads), (batch, keys, key_heads)]
    torch.manual_seed(1)
    made = [(2 * torch.randn(*size, width)).bfloat16().transpose(1, 2) for size in sizes]
    return made, torch.randn(batch, heads, queries, width).bfloat16()


def naive(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
    """Written out in float64, heads repeated."""
    repeats = query.shape[1] // key.shape[1]
    key, value = (t.repeat_interleave(repeats, 1) for t in (key, value))
    seen = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril(key.shape[2] - query.shape[2])
    scores = (query @ key.mT * scaling).masked_fill(~seen, -torch.inf)
    return scores.softmax(-1) @ value


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((found.double() - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scaling", [0.125, 0.3])
def test_output_and_gradients_are_as_near_to_float64_as_torchs_own(shape: tuple[int, ...], scaling: float) -> None:
    inputs, grad = states(shape)
    runs = {}
    for name in ("exact", "torch", "ours"):
        leaves = [(t.double() if name == "exact" else t.clone()).requires_grad_() for t in inputs]
        if name == "exact":
            out = naive(*leaves, scaling)
        elif name == "ours":
            out = short_attention.causal(*leaves, scaling)
        else:
            queries, keys = leaves[0].shape[2], leaves[1].shape[2]
            seen = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
            out = scaled_dot_product_attention(*leaves, attn_mask=seen, scale=scaling, enable_gqa=True)
        out.backward(grad.to(out.dtype))
        runs[name] = [out.detach(), *(leaf.grad for leaf in leaves)]
    for ours, torchs, exact in zip(runs["ours"], runs["torch"], runs["exact"], strict=True):
        assert ours.shape == exact.shape
        assert error(ours, exact) < max(1.6 * error(torchs, exact), 1e-3)


def test_scores_that_are_large_lose_no_precision() -> None:
    """Rounded to 16 bits, a score of 200 is off by up to half a unit, and its weight by half."""
    (query, key, value), grad = states((1, 2, 2, 64, 64))
    inputs = [(20 * query).bfloat16(), key, value]
    leaves = [t.clone().requires_grad_() for t in inputs]
    exact = [t.double().requires_grad_() for t in inputs]
    short_attention.causal(*leaves, 0.2).backward(grad)
    naive(*exact, 0.2).backward(grad.double())
    for leaf, wanted in zip(leaves, exact, strict=True):
        assert error(leaf.grad, wanted.grad) < 0.02


def step(network: PreTrainedModel, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    network.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        network(input_ids=ids, use_cache=False).logits.float().logsumexp(-1).sum().backward()
    return {name: p.grad.clone() for name, p in network.named_parameters()}


def test_a_network_learns_the_same_through_it(tiny_glm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = AutoModelForCausalLM.from_pretrained(tiny_glm, dtype=torch.bfloat16, attn_implementation="sdpa")
    ids = torch.randint(3, network.config.vocab_size, (3, 24))
    before = step(network, ids)
    short_attention.use(network)
    calls: list[int] = []
    real = short_attention.causal
    monkeypatch.setattr(short_attention, "causal", lambda *given: (calls.append(1), real(*given))[1])
    after = step(network, ids)
    assert len(calls) == network.config.num_hidden_layers
    for name, grad in before.items():
        assert error(after[name], grad.double()) < 0.05, name


def test_left_to_torch_where_it_is_not_faster_or_not_the_same() -> None:
    (query, key, value), _ = states((1, 2, 2, 16, 16))
    assert not short_attention.fits(query, key, value)  # no gradient is wanted
    query.requires_grad_()
    assert short_attention.fits(query, key, value)
    assert not short_attention.fits(query.float(), key.float(), value.float())
    assert not short_attention.fits(query[:, :, :1], key, value)  # a cached step
    long = torch.zeros(1, 2, short_attention.LONGEST + 1, 32, dtype=torch.bfloat16)
    assert not short_attention.fits(query, long, long)
