"""ChatGLM-6B's network against one written out number by number, and against itself in other batches and forms."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_chatglm import EOP, GMASK, MASK, PAD, SOP, config, naive_logits, naive_positions, network, padded, prompt
from tiny_chatglm import samples as all_samples
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, StaticCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from glm_lightning.models.chatglm import ChatGLMConfig, ChatGLMForCausalLM
from glm_lightning.models.chatglm.positions import attention_mask_of, inverse_frequencies, positions, rotary_table

KINDS = ["gmask", "mask", "both", "long", "no text", "no context", "no mask token", "no sop", "later sop"]
SAMPLES = all_samples()


@pytest.fixture(scope="module")
def double() -> ChatGLMForCausalLM:
    return network()


@pytest.fixture(scope="module")
def alone(double: ChatGLMForCausalLM) -> list[Tensor]:
    """Logits of every sample in a row of its own."""
    return [logits(double, [row])[0] for row in SAMPLES]


@torch.no_grad()
def logits(made: ChatGLMForCausalLM, rows: list[list[int]], **inputs: Any) -> Tensor:
    result: Tensor = made(input_ids=padded(rows)[0], use_cache=False, **inputs).logits
    return result


def close(one: Tensor, two: Tensor, *, atol: float = 1e-10) -> None:
    torch.testing.assert_close(one, two, rtol=0, atol=atol)


@pytest.mark.parametrize("index", range(len(SAMPLES)), ids=KINDS)
def test_equals_the_network_written_out(double: ChatGLMForCausalLM, alone: list[Tensor], index: int) -> None:
    close(alone[index], naive_logits(double, SAMPLES[index]))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.sampled_from([5, 6, MASK, GMASK, SOP]), min_size=1, max_size=9), min_size=1, max_size=4))
def test_positions_follow_the_rule(rows: list[list[int]]) -> None:
    for left in (False, True):
        ids, mask = padded(rows, left=left)
        found = positions(ids, mask, config())
        for row, real, expected in zip(found, mask.bool(), rows, strict=True):
            assert row[:, real].T.tolist() == [list(at) for at in naive_positions(expected)]
            assert not left or not row[:, ~real].any()
    places = torch.tensor([[t for row in rows for t in range(len(row))]])
    together = positions(torch.tensor([[token for row in rows for token in row]]), None, config(), places=places)
    assert together[0].T.tolist() == [list(at) for row in rows for at in naive_positions(row)]


def test_rows_do_not_depend_on_padding_on_the_right(double: ChatGLMForCausalLM, alone: list[Tensor]) -> None:
    together = logits(double, SAMPLES)
    for row, expected in zip(together, alone, strict=True):
        close(row[: len(expected)], expected)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_rows_do_not_depend_on_padding_on_the_left(alone: list[Tensor], attention: str) -> None:
    ids, mask = padded(SAMPLES, left=True)
    together = network(attention=attention)(input_ids=ids, attention_mask=mask, use_cache=False).logits
    assert together.isfinite().all()
    for row, expected in zip(together, alone, strict=True):
        close(row[-len(expected) :], expected)


@torch.no_grad()
def test_ids_of_padding_mean_nothing(double: ChatGLMForCausalLM, alone: list[Tensor]) -> None:
    ids, mask = padded(SAMPLES, left=True)
    for token in (SOP, GMASK, MASK):
        together = double(input_ids=ids.masked_fill(mask == 0, token), attention_mask=mask, use_cache=False).logits
        for row, expected in zip(together, alone, strict=True):
            close(row[-len(expected) :], expected)


def packed(rows: list[list[int]], *, fill: int = 0) -> tuple[Tensor, Tensor]:
    at = [place for row in rows for place in naive_positions(row)] + [(0, 0)] * fill
    return torch.tensor([[*(token for row in rows for token in row), *[PAD] * fill]]), torch.tensor(at).T[None]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("counted", [False, True])
def test_packed_samples_do_not_see_each_other(alone: list[Tensor], attention: str, counted: bool) -> None:
    made = network(attention=attention)
    for order in (range(len(SAMPLES)), reversed(range(len(SAMPLES)))):
        indices = list(order)
        ids, position_ids = packed([SAMPLES[i] for i in indices], fill=3)
        if counted:
            position_ids = torch.tensor([[*(t for i in indices for t in range(len(SAMPLES[i]))), 0, 1, 2]])
        found = made(input_ids=ids, position_ids=position_ids, use_cache=False).logits[0]
        assert found.isfinite().all()
        close(found[:-3], torch.cat([alone[i] for i in indices]))


def test_both_attentions_have_the_same_gradients() -> None:
    gradients = []
    for attention in ("sdpa", "eager"):
        made = network(attention=attention)
        ids, _ = padded(SAMPLES)
        made(input_ids=ids, labels=ids.masked_fill(ids == PAD, -100), use_cache=False).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in made.named_parameters()})
    assert len(gradients[0]) == 2 * 12 + 3  # one tensor for embeddings and head
    for name, gradient in gradients[0].items():
        close(gradient, gradients[1][name])


def test_gradients_are_the_same_when_activations_are_recomputed() -> None:
    gradients = []
    for recompute in (False, True):
        made = network().train()
        if recompute:
            made.activation_checkpointing_enable({"use_reentrant": False})
            calls = []
            made.transformer.layers[0].attention.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        ids, _ = padded(SAMPLES)
        made(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        gradients.append([parameter.grad for parameter in made.parameters()])
    assert len(calls) == 2
    for one, two in zip(*gradients, strict=True):
        close(one, two)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_mask_of_four_dimensions_is_taken_as_it_is(alone: list[Tensor], attention: str) -> None:
    double, row = network(attention=attention), SAMPLES[0]
    block = torch.tensor(naive_positions(row))[:, 1]
    sees = torch.ones(len(row), len(row)).tril().bool() | (block == 0)
    close(logits(double, [row], attention_mask=sees[None, None])[0], alone[0])
    added = torch.zeros(sees.shape, dtype=torch.float64).masked_fill(~sees, -torch.inf)
    close(logits(double, [row], attention_mask=added[None, None])[0], alone[0])
    causal = torch.ones(len(row), len(row)).tril().bool()
    other = logits(double, [row], attention_mask=causal[None, None])[0]
    assert (other - alone[0]).abs().max() > 0.1


def test_only_the_wanted_logits_are_made(double: ChatGLMForCausalLM, alone: list[Tensor]) -> None:
    close(logits(double, [SAMPLES[0]], logits_to_keep=2)[0], alone[0][-2:])


def test_hidden_states_and_attentions_are_given_on_request(alone: list[Tensor]) -> None:
    made = network(attention="eager")
    ids, _ = padded([SAMPLES[0]])
    output = made(input_ids=ids, use_cache=False, output_hidden_states=True, output_attentions=True)
    assert len(output.hidden_states) == 3
    close(output.hidden_states[0], made.transformer.word_embeddings(ids))
    assert [tuple(each.shape) for each in output.attentions] == [(1, 4, len(SAMPLES[0]), len(SAMPLES[0]))] * 2
    context = SAMPLES[0].index(SOP)
    weights = output.attentions[0][0, 0]
    assert (weights[:context, :context] > 0).all()
    assert (weights.triu(1)[:, context:] == 0).all()


def test_angles_are_those_of_the_official_code_in_every_type() -> None:
    position_ids = torch.tensor([[[0, 1, 1000], [3, 0, 777]]])
    for dtype, precision in [
        (torch.float16, torch.float16),  # as the release is held, and was trained
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ]:
        cos, sin = rotary_table(position_ids, head_dim=128, dtype=dtype)
        assert cos.shape == (1, 1, 3, 2, 64)
        for t in range(3):
            for half in range(2):
                angle = position_ids[0, half, t].to(precision) * inverse_frequencies(128).to(precision)
                assert torch.equal(cos[0, 0, t, half], torch.cat([angle, angle]).cos().to(dtype))
                assert torch.equal(sin[0, 0, t, half], torch.cat([angle, angle]).sin().to(dtype))


def test_frequencies_are_rounded_to_float16() -> None:
    assert inverse_frequencies(128).tolist() == [torch.tensor(10000 ** (-i / 32)).half().item() for i in range(32)]


def test_sixteen_bits_are_close(alone: list[Tensor]) -> None:
    for dtype, most in [(torch.float16, 0.02), (torch.bfloat16, 0.15)]:
        found = logits(network(dtype=dtype), [SAMPLES[0]])[0].double()
        assert (found - alone[0]).norm() / alone[0].norm() < most


@pytest.mark.parametrize("version", [2, 3])
def test_flash_attention_is_refused(version: int) -> None:
    with pytest.raises(ValueError, match=f"flash_attention_{version}.*both directions.*sdpa"):
        network(attention=f"flash_attention_{version}")


@pytest.fixture
def registered() -> Iterator[dict[str, Any]]:
    """An attention function of somebody else, which notes what it is given."""
    noted: dict[str, Any] = {"layers": [], "masks": []}

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any) -> Any:
        noted["layers"].append(module.layer_idx)
        noted["dtypes"] = {query.dtype, key.dtype, value.dtype}
        noted["masks"].append(None if mask is None else tuple(mask.shape))
        if (prefix := noted.get("prefix")) is not None:
            front = prefix[module.layer_idx].expand(len(key), -1, -1, -1)
            key, value = torch.cat([front, key], dim=2), torch.cat([front, value], dim=2)
            if mask is not None:
                wider = torch.full((*mask.shape[:-1], prefix.shape[-2]), bool(noted["seen"]))
                mask = torch.cat([wider, mask], dim=-1)
        return sdpa_attention_forward(module, query, key, value, mask, **kwargs)

    AttentionInterface.register("noting", attend)
    AttentionMaskInterface.register("noting", sdpa_mask)
    yield noted
    del AttentionInterface._global_mapping["noting"]
    del AttentionMaskInterface._global_mapping["noting"]


@torch.no_grad()
def test_a_registered_attention_may_put_keys_in_front(registered: dict[str, Any], alone: list[Tensor]) -> None:
    made = network(attention="noting")
    registered["prefix"] = torch.randn(2, 4, 5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    registered["seen"] = False
    found = logits(made, SAMPLES)
    for row, expected in zip(found, alone, strict=True):
        close(row[: len(expected)], expected)
    assert registered["layers"] == [0, 1]
    registered["seen"] = True
    full = logits(made, SAMPLES)
    assert (full[0, 0] - alone[0][0]).abs().max() > 0.1
    # one row, step by step: no mask is made, and the prefix is seen by each step
    row = SAMPLES[0]
    cache, steps = DynamicCache(config=made.config), []
    places = torch.tensor(naive_positions(row)).T[None]
    for start, stop in [(0, 7), *((t, t + 1) for t in range(7, len(row)))]:
        ids = torch.tensor([row[start:stop]])
        steps.append(made(input_ids=ids, position_ids=places[..., start:stop], cache=cache).logits[0])
    close(torch.cat(steps), full[0][: len(row)])
    assert registered["masks"][-1] is None


@torch.no_grad()
def test_mixed_precision_reaches_attention(registered: dict[str, Any]) -> None:
    made = network(attention="noting", dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        logits(made, [SAMPLES[0]])
    assert registered["dtypes"] == {torch.bfloat16}


def test_empty_places_of_a_cache_are_hidden_from_a_context() -> None:
    cache = StaticCache(config=config(), max_cache_len=7)
    context = torch.tensor([[[0, 1, 2, 3, 4], [0, 0, 0, 0, 0]]])
    mask = attention_mask_of(network().config, torch.zeros(1, 5, 64), None, cache, context)
    assert mask is not None
    assert mask.tolist() == [[[[True] * 5 + [False] * 2] * 5]]


def test_an_attention_without_a_mask_is_refused() -> None:
    AttentionInterface.register("unmasked", sdpa_attention_forward)
    made = network(attention="unmasked")
    with pytest.raises(ValueError, match=r"'unmasked': no mask is registered.*AttentionMaskInterface"):
        logits(made, [SAMPLES[0]])
    del AttentionInterface._global_mapping["unmasked"]


@torch.no_grad()
def test_masks_while_decoding_are_one_row_high(registered: dict[str, Any]) -> None:
    made = network(attention="noting")
    ids, mask = padded([prompt(4, 0), prompt(7, 1)], left=True)
    made.generate(input_ids=ids, attention_mask=mask, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert registered["masks"][::2] == [(2, 1, 9, 9), (2, 1, 1, 10), (2, 1, 1, 11)]
    registered["masks"].clear()
    made.generate(input_ids=ids[1:], max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert registered["masks"][::2] == [(1, 1, 9, 9), None, None]


def test_wrong_inputs_are_told(double: ChatGLMForCausalLM) -> None:
    ids = torch.tensor([SAMPLES[0]])
    embeds = double.transformer.word_embeddings(ids)
    with pytest.raises(ValueError, match="exactly one"):
        double(input_ids=ids, inputs_embeds=embeds)
    with pytest.raises(ValueError, match="position_ids"):
        double(inputs_embeds=embeds)
    cache = double(input_ids=ids, use_cache=True).cache
    with pytest.raises(ValueError, match="position_ids"):
        double(input_ids=ids, cache=cache)
    with pytest.raises(ValueError, match="context sees itself in both directions"):
        double(input_ids=ids, cache=cache, position_ids=positions(ids, None, double.config))


def test_embeddings_may_come_with_positions(double: ChatGLMForCausalLM, alone: list[Tensor]) -> None:
    ids = torch.tensor([SAMPLES[0]])
    at = positions(ids, None, double.config)
    close(double(inputs_embeds=double.transformer.word_embeddings(ids), position_ids=at).logits[0], alone[0])


def test_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        made = ChatGLMForCausalLM(ChatGLMConfig())
    assert sum(parameter.numel() for parameter in made.parameters()) == 6_173_286_400
    assert not list(made.buffers())
    assert made.lm_head.weight is made.transformer.word_embeddings.weight


def test_embeddings_and_head_are_one_and_can_be_resized() -> None:
    made = network()
    before = made.get_input_embeddings().weight[:90].clone()
    made.resize_token_embeddings(90)
    assert made.config.vocab_size == 90
    assert made.get_output_embeddings().weight is made.get_input_embeddings().weight
    assert torch.equal(made.lm_head.weight, before)
    assert logits(made, [SAMPLES[0]]).shape[-1] == 90
    assert EOP < 90
