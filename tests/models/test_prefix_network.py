"""A prefix before keys and values: what the network computes with it, on every family."""

from __future__ import annotations

import copy
import sys
from itertools import pairwise

import pytest
import torch
from prefix_networks import (
    CACHED,
    FAMILIES,
    cache_of,
    encoder_for,
    logits_behind_cache,
    network_of,
    some_ids,
    with_prefix,
)
from safetensors.torch import load_file
from torch import Tensor
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel, StaticCache

from glm_lightning.inference.generation import generate, stream
from glm_lightning.models import prefix
from glm_lightning.models.chatglm.positions import positions
from glm_lightning.types import UserError

NEAR = 3e-5
"""The largest logits are around 10."""


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


def logits_of(network, ids, **inputs) -> Tensor:
    with torch.no_grad():
        return network(input_ids=ids, **inputs).logits


def far(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("cached", CACHED)
def test_equals_a_prefix_in_the_cache(cached, attention):
    base, network = network_of(cached, attention=attention), network_of(cached, attention=attention)
    encoder = encoder_for(network)
    prefix.attach(network, encoder)
    ids = some_ids(3, 11)
    with torch.no_grad():
        want = logits_behind_cache(base, encoder, ids)
    assert far(logits_of(network, ids), want) < NEAR
    assert far(logits_of(base, ids), want) > 0.1


def test_equals_a_prefix_among_expanded_keys(monkeypatch):
    """Latent attention by hand: the prefix is put where keys and values are expanded, the mask is written out."""
    base, network = network_of("glm4_moe_lite"), network_of("glm4_moe_lite")
    encoder = encoder_for(network)
    prefix.attach(network, encoder)
    ids = some_ids(2, 9)
    numbers = encoder.values().view(5, 3, 4 * (20 + 16))
    original = type(base.model.layers[0].self_attn).expand_kv

    def expanded(self, latent, turned):
        key, value = original(self, latent, turned)
        keys, values = numbers[:, self.layer_idx].split([4 * 20, 4 * 16], dim=-1)
        front = (part.view(1, 5, 4, -1).transpose(1, 2).expand(2, -1, -1, -1) for part in (keys, values))
        return tuple(torch.cat(pair, dim=2) for pair in zip(front, (key, value), strict=True))

    with monkeypatch.context() as patch:
        patch.setattr(type(base.model.layers[0].self_attn), "expand_kv", expanded)
        seen = torch.ones(9, 14, dtype=torch.bool).tril(diagonal=5)[None, None]
        want = logits_of(base, ids, attention_mask=seen.expand(2, -1, -1, -1))
    assert far(logits_of(network, ids), want) < NEAR


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_switched_off_it_is_the_base(family, attention):
    base, network = network_of(family, attention=attention), network_of(family, attention=attention)
    prefix.attach(network, encoder_for(network))
    ids = some_ids(2, 9)
    mask = torch.tensor([[1] * 9, [0] * 3 + [1] * 6])
    prefix.encoder_of(network).enabled = False
    assert torch.equal(logits_of(network, ids), logits_of(base, ids))
    assert torch.equal(logits_of(network, ids, attention_mask=mask), logits_of(base, ids, attention_mask=mask))
    prefix.encoder_of(network).enabled = True
    assert far(logits_of(network, ids), logits_of(base, ids)) > 0.1


def test_padding_on_either_side_changes_nothing(family):
    network = with_prefix(family)
    rows = [some_ids(1, length, seed=length) for length in (10, 6, 4)]
    alone = [logits_of(network, row)[0] for row in rows]
    for side in ("left", "right"):
        pads = [torch.zeros(1, 10 - row.shape[1], dtype=torch.long) for row in rows]
        ids = torch.cat([torch.cat([p, r] if side == "left" else [r, p], 1) for p, r in zip(pads, rows, strict=True)])
        mask = (ids != 0).long()
        given = {} if family == "chatglm" else {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
        logits = logits_of(network, ids, attention_mask=mask, **given)
        assert logits.isfinite().all()
        for got, real, want in zip(logits, mask.bool(), alone, strict=True):
            assert far(got[real], want) < NEAR, side
    # on the right no mask is needed, which is how networks are trained here
    unmasked = logits_of(network, ids)
    assert all(far(got[: len(want)], want) < NEAR for got, want in zip(unmasked, alone, strict=True))


def test_a_row_of_padding_alone_is_finite(family):
    network = with_prefix(family)
    ids = some_ids(2, 6)
    mask = torch.tensor([[1] * 6, [0] * 6])
    assert logits_of(network, ids, attention_mask=mask).isfinite().all()


def test_packed_samples_see_the_prefix_and_not_each_other(family):
    network = with_prefix(family)
    samples = [some_ids(1, length, seed=length) for length in (5, 8, 6)]
    if family == "chatglm":
        places = torch.cat([positions(sample, None, network.config) for sample in samples], dim=-1)
    else:
        places = torch.cat([torch.arange(sample.shape[1])[None] for sample in samples], dim=-1)
    packed = logits_of(network, torch.cat(samples, dim=1), position_ids=places, use_cache=False)
    alone = torch.cat([logits_of(network, sample) for sample in samples], dim=1)
    assert far(packed, alone) < NEAR


def test_generation_with_a_cache_equals_generation_without(family):
    network = with_prefix(family)
    ids = some_ids(1, 8)
    cache = DynamicCache(config=network.config)
    knobs = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    cached = network.generate(ids, cache=cache, **knobs)
    assert cache.get_seq_length() == ids.shape[1] + 5  # nothing of the prefix is in it
    assert torch.equal(cached, network.generate(ids, use_cache=False, **knobs))
    assert not torch.equal(cached, network_of(family).generate(ids, **knobs))
    assert torch.equal(cached, network.generate(ids, cache_implementation="static", disable_compile=True, **knobs))


def test_answers_do_not_depend_on_the_batch(family):
    network = with_prefix(family)
    prompts = [some_ids(1, length, seed=length)[0].tolist() for length in (4, 9, 6)]
    knobs = {"stop_ids": [1], "max_new_tokens": 5}
    together = generate(network, prompts, pad_id=0, **knobs)
    assert together == [generate(network, [prompt], pad_id=0, **knobs)[0] for prompt in prompts]
    streamed = "".join(stream(network, prompts[1], tokenizer_decode=lambda ids: "".join(map(chr, ids)), **knobs))
    assert [ord(letter) for letter in streamed] == together[1].ids


def test_a_static_cache_in_prefill(family):
    if family in ("chatglm", "glm4_moe_lite"):
        pytest.skip("covered by generation; its cache is of another make")
    network = with_prefix(family)
    ids = some_ids(2, 7)
    cache = StaticCache(config=network.config, max_cache_len=20)
    assert far(logits_of(network, ids, cache=cache), logits_of(network, ids)) < NEAR


@pytest.mark.parametrize("cached", CACHED)
def test_gradients_equal_those_through_a_cache(cached):
    network = with_prefix(cached)
    ids = some_ids(2, 9)
    encoder = prefix.encoder_of(network)
    network(input_ids=ids).logits.logsumexp(-1).mean().backward()
    got = encoder.embedding.weight.grad
    encoder.embedding.weight.grad = None
    logits_behind_cache(network_of(cached), encoder, ids).logsumexp(-1).mean().backward()
    want = encoder.embedding.weight.grad
    assert far(got, want) < 1e-5 * float(want.abs().max())


@pytest.mark.parametrize("hidden", [None, 6])
def test_checkpointed_layers_are_recomputed_with_the_prefix_they_had(family, hidden):
    """Two forward passes before one backward pass, each with dropout of its own, and a look at the base between."""
    gradients = []
    for checkpointed in (False, True):
        network = with_prefix(family, hidden=hidden, dropout=0.3)
        if checkpointed:
            network.activation_checkpointing_enable({"use_reentrant": False})
        encoder = prefix.encoder_of(network)
        network.requires_grad_(False)
        encoder.requires_grad_(True)
        network.train()
        torch.manual_seed(3)
        total = sum(
            network(input_ids=some_ids(2, 7, seed=s), use_cache=False).logits.logsumexp(-1).sum() for s in (4, 5)
        )
        encoder.enabled = False
        logits_of(network, some_ids(1, 7), use_cache=False)
        encoder.enabled = True
        total.backward()
        gradients.append([parameter.grad for parameter in encoder.parameters()])
    for plain, again in zip(*gradients, strict=True):
        assert plain.abs().max() > 0
        assert far(plain, again) < 1e-5 * float(plain.abs().max())


def test_dropout_is_for_training_and_differs_between_rows():
    network = with_prefix("glm", dropout=0.5).train()
    ids = some_ids(1, 7).expand(2, -1)
    first, second = logits_of(network, ids)
    assert far(first, second) > 0.1
    first, second = logits_of(network.eval(), ids)
    assert far(first, second) < NEAR


@pytest.fixture
def counted(monkeypatch):
    """How often the projection's second layer has been computed."""
    calls = []

    def attach(network):
        prefix.encoder_of(network).trans[2].register_forward_hook(lambda *_: calls.append(1))
        return calls

    return attach


def test_a_projection_is_computed_once_a_forward_and_once_a_generation(counted):
    network = with_prefix("glm", hidden=6)
    calls = counted(network)
    network.train()(input_ids=some_ids(2, 7), use_cache=False)
    assert len(calls) == 1
    calls.clear()
    network.eval()
    generate(network, [[5, 6, 7]], stop_ids=[], pad_id=0, max_new_tokens=6)
    assert len(calls) == 1


def test_a_projection_is_never_stale():
    network = with_prefix("glm", hidden=6)
    prompt = some_ids(1, 7)[0].tolist()
    knobs = {"stop_ids": [], "pad_id": 0, "max_new_tokens": 8}
    before = generate(network, [prompt], **knobs)
    encoder = prefix.encoder_of(network)
    fresh = network_of("glm")
    # written past autograd's version counter, as strategies do that gather shards
    encoder.trans[2].weight.data.mul_(-2)
    prefix.attach(fresh, copy.deepcopy(encoder))
    assert generate(network, [prompt], **knobs) == generate(fresh, [prompt], **knobs) != before


def test_networks_with_prefixes_live_side_by_side(family):
    one, other = network_of(family), network_of(family)
    prefix.attach(one, encoder_for(one, seed=1))
    prefix.attach(other, encoder_for(other, seed=2, length=3))
    ids = some_ids(2, 8)
    alone = [logits_of(network, ids) for network in (one, other)]
    twin = copy.deepcopy(one)
    with torch.no_grad():
        prefix.encoder_of(twin).embedding.weight.zero_()
    again = [logits_of(network, ids) for network in (twin, other, one)]
    assert torch.equal(again[2], alone[0])
    assert torch.equal(again[1], alone[1])
    assert all(far(a, b) > 0.01 for a, b in pairwise(again))


def test_networks_of_one_configuration_do_not_share_the_prefix(family):
    one = network_of(family)
    other = type(one)(one.config).eval()
    other.load_state_dict(one.state_dict())
    ids = some_ids(2, 8)
    before = logits_of(other, ids)
    prefix.attach(one, encoder_for(one))
    assert torch.equal(logits_of(other, ids), before)
    assert far(logits_of(one, ids), before) > 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_around_a_prefix_of_32_bits(family, dtype):
    network = with_prefix(family).to(dtype)
    prefix.encoder_of(network).float()
    exact = logits_of(with_prefix(family), some_ids(2, 8))
    assert prefix.encoder_of(network).embedding.weight.dtype == torch.float32
    assert far(logits_of(network, some_ids(2, 8)).float(), exact) < 0.5
    mixed = with_prefix(family)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = mixed(input_ids=some_ids(2, 8)).logits
        masked = mixed(input_ids=some_ids(2, 8), attention_mask=torch.tensor([[1] * 8, [0] + [1] * 7])).logits
    assert far(logits.detach().float(), exact) < 0.5
    assert masked.isfinite().all()


def test_a_projection_is_computed_in_32_bits_in_mixed_precision():
    network = with_prefix("glm", hidden=6)
    exact = prefix.encoder_of(network).values()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(prefix.encoder_of(network).values(), exact)


def test_the_state_has_the_official_names_and_the_base_is_saved_without(tmp_path):
    network = with_prefix("chatglm", hidden=6)
    base = network_of("chatglm").state_dict().keys()
    names = {"embedding.weight", "trans.0.weight", "trans.0.bias", "trans.2.weight", "trans.2.bias"}
    assert network.state_dict().keys() - base == {f"transformer.prefix_encoder.{name}" for name in names}
    glm = with_prefix("glm")
    glm.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == network_of("glm").state_dict().keys()
    again = type(glm).from_pretrained(tmp_path).eval()
    assert again.config._attn_implementation == "sdpa"
    assert torch.equal(logits_of(again, some_ids(2, 8)), logits_of(network_of("glm"), some_ids(2, 8)))


def test_the_cache_is_what_the_reference_says():
    """The layout of the reference itself: [prefix token, layer, key or value, head, head dim]."""
    network = network_of("glm")
    encoder = encoder_for(network, length=2)
    cache = cache_of(encoder, rows=1)
    flat = encoder.embedding.weight.detach()
    # token 1, layer 2, value, head 1: behind two layers of 2 * 2 heads of 16 and the keys of the third
    assert torch.equal(cache.layers[2].values[0, 1, 1], flat[1][2 * 64 + 32 + 16 :][:16])


def test_other_attention_is_refused_by_name():
    network = network_of("glm")
    network.config._attn_implementation = "flash_attention_2"
    with pytest.raises(UserError, match=r"model.attention is 'flash_attention_2'.*give model.attention=sdpa"):
        prefix.attach(network, encoder_for(network))


def test_a_network_without_a_place_for_a_prefix_is_refused_by_name():
    network = GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=8, vocab_size=16))
    with pytest.raises(UserError, match="0 of the 2 layers of GPT2LMHeadModel"):
        prefix.Geometry.of(network)


def test_a_network_that_loses_the_prefix_on_its_way_is_an_error(monkeypatch):
    network = with_prefix("glm")
    module = sys.modules[type(network).__module__]
    layer = module.GlmDecoderLayer
    original = layer.forward
    monkeypatch.setattr(layer, "forward", lambda self, *args, prefix, **kwargs: original(self, *args, **kwargs))
    with pytest.raises(TypeError, match="prefix"):
        logits_of(network, some_ids(1, 5))
