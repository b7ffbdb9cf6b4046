from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForCausalLM, PreTrainedModel

from glm_lightning.models import cpu_attention, training_attention

SHAPES = [
    (2, 9, 3, 64, 64),
    (1, 4, 4, 256, 256),
    (2, 4, 2, 300, 300),
    (1, 3, 1, 520, 536),
    (2, 8, 2, 100, 130),
    (3, 4, 1, 17, 40),
    (1, 2, 1, 2, 2),
]
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
            out = cpu_attention.causal(*leaves, scaling).transpose(1, 2)
        else:
            queries, keys = leaves[0].shape[2], leaves[1].shape[2]
            seen = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
            out = scaled_dot_product_attention(*leaves, attn_mask=seen, scale=scaling, enable_gqa=True)
        out.backward(grad.to(out.dtype))
        runs[name] = [out.detach(), *(leaf.grad for leaf in leaves)]
    # a block's part of the gradient of keys and values is rounded before it is added
    factor = 1.6 if shape[3] <= cpu_attention.BLOCK else 2.4
    for ours, torchs, exact in zip(runs["ours"], runs["torch"], runs["exact"], strict=True):
        assert ours.shape == exact.shape
        assert error(ours, exact) < max(factor * error(torchs, exact), 1e-3)


def test_scores_that_are_large_lose_no_precision() -> None:
    """Rounded to 16 bits, a score of 200 is off by up to half a unit, and its weight by half."""
    (query, key, value), grad = states((1, 2, 2, 64, 64))
    inputs = [(20 * query).bfloat16(), key, value]
    leaves = [t.clone().requires_grad_() for t in inputs]
    exact = [t.double().requires_grad_() for t in inputs]
    cpu_attention.causal(*leaves, 0.2).transpose(1, 2).backward(grad)
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
    training_attention.use(network)
    calls: list[int] = []
    real = cpu_attention.causal
    monkeypatch.setattr(cpu_attention, "causal", lambda *given: (calls.append(1), real(*given))[1])
    after = step(network, ids)
    assert len(calls) == network.config.num_hidden_layers
    for name, grad in before.items():
        assert error(after[name], grad.double()) < 0.05, name


def test_left_to_torch_where_it_is_not_faster_or_not_the_same() -> None:
    (query, key, value), _ = states((1, 2, 2, 16, 16))
    assert not cpu_attention.fits(query, key, value, None)  # no gradient is wanted
    query.requires_grad_()
    assert cpu_attention.fits(query, key, value, None)
    assert not cpu_attention.fits(query.float(), key.float(), value.float(), None)
    assert cpu_attention.fits(query.float(), key.float(), value.float(), torch.tensor([0, 16]))
    assert not cpu_attention.fits(query[:, :, :1], key, value, None)  # a cached step


PACKED = {
    "one row": (1, [0, 5, 6, 20, 32]),
    "two rows": (2, [0, 9, 32, 40, 64]),
    "long samples": (1, [0, 270, 300]),
}


@pytest.mark.parametrize("front", [0, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", PACKED)
def test_samples_of_a_row_are_attended_to_alone(case: str, dtype: torch.dtype, front: int) -> None:
    """A prefix in front of the row stands in front of each sample, and learns from all of them."""
    rows, starts = PACKED[case]
    width = starts[-1] // rows
    given, grad = states((rows, 4, 2, width, front + width), width=16)
    leaves = [t.to(dtype, copy=True).requires_grad_() for t in given]
    found = cpu_attention.causal(*leaves, 0.25, torch.tensor(starts, dtype=torch.int32)).transpose(1, 2)
    found.backward(grad.to(dtype))
    exact = [t.double().requires_grad_() for t in given]
    query, key, value = exact
    wanted = torch.zeros_like(query)
    for start, stop in itertools.pairwise(starts):
        row, first = divmod(start, width)
        places = slice(first, first + stop - start)
        fronts = [t[row : row + 1, :, :front] for t in (key, value)]
        own = [t[row : row + 1, :, front:][:, :, places] for t in (key, value)]
        pair = [torch.cat(both, 2) for both in zip(fronts, own, strict=True)]
        wanted[row : row + 1, :, places] = naive(query[row : row + 1, :, places], *pair, 0.25)
    wanted.backward(grad.double())
    limit = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.03}[dtype]
    for ours, exactly in zip([found, *(t.grad for t in leaves)], [wanted, *(t.grad for t in exact)], strict=True):
        assert error(ours, exactly) < limit


def test_torch_can_compile_a_call_of_it() -> None:
    given, _ = states((1, 4, 2, 24, 24), width=16)
    leaves = [t.float().requires_grad_() for t in given]
    starts = torch.tensor([0, 10, 24], dtype=torch.int32)
    torch.library.opcheck(cpu_attention._causal, (*leaves, starts, 0.25), test_utils=("test_schema", "test_faketensor"))
