"""Soft prompts: where they begin, what they cost, and that every row sees them where it should."""

import peft
import pytest
import torch
from tiny_families import batch, ids, learn, logits, made, network_of, skeleton_of
from torch.nn.functional import cross_entropy

from glm_lightning.inference.generation import generate, stream
from glm_lightning.objectives.sft import SFT
from glm_lightning.types import UserError


class Words:
    """Stands for a tokenizer: a token for each word, by its length."""

    def encode(self, texts):
        return [[len(word) + 10 for word in text.split()] for text in texts]


def soft(family="glm", **knobs):
    return made("prompt_tuning", network_of(family), tokenizer=Words(), **knobs)


def embeddings(method):
    return method.network.get_prompt(batch_size=1)[0]


def test_begins_at_the_text_repeated_or_cut():
    table = network_of("glm").get_input_embeddings().weight
    method = soft(num_tokens=5, init="text", init_text="a bb ccc")
    assert torch.equal(embeddings(method), table[torch.tensor([11, 12, 13, 11, 12])])
    assert method.notices == ["method.init_text has 3 tokens: repeated to the 5 soft ones"]
    method = soft(num_tokens=2, init="text", init_text="a bb ccc")
    assert torch.equal(embeddings(method), table[torch.tensor([11, 12])])
    assert "cut to the 2" in method.notices[0]
    assert not soft(num_tokens=3, init="text", init_text="a bb ccc").notices


def test_begins_at_words_of_the_vocabulary():
    table = network_of("glm").get_input_embeddings().weight
    assert all((row == table).all(dim=1).any() for row in embeddings(soft(num_tokens=6)))
    assert not any((row == table).all(dim=1).any() for row in embeddings(soft(num_tokens=6, init="random")))


def test_a_prompt_of_real_words_is_those_words_in_front():
    """The definition of a soft prompt, and the loss of the real positions alone."""
    method = soft(num_tokens=3, init="text", init_text="a bb ccc")
    sample = batch()
    front = torch.tensor([[11, 12, 13]]).expand(3, -1)
    base = network_of("glm")
    longer = base(input_ids=torch.cat([front, sample.input_ids], dim=1)).logits[:, 3:]
    torch.testing.assert_close(logits(method.network, sample.input_ids), longer, atol=1e-5, rtol=1e-5)
    sums = SFT().loss(method.network, sample)
    expected = cross_entropy(longer.flatten(0, 1)[sample.where], sample.targets, reduction="sum")
    assert sums.total.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("name", ["glm", "glm4", "llama", "glm4_moe"])
def test_answers_of_a_padded_batch_are_those_of_words_in_front(name):
    """PEFT puts the padding between the soft prompt and the text, and drops the positions that would say so."""
    method = soft(name, num_tokens=3, init="text", init_text="a bb ccc")
    prompts = [row.tolist() for row in ids(3, 12, seed=5)]
    prompts = [prompts[0], prompts[1][:5], prompts[2][:9]]
    options = {"stop_ids": [1], "pad_id": 0, "max_new_tokens": 8}
    expected = [a.ids for a in generate(network_of(name), [[11, 12, 13, *prompt] for prompt in prompts], **options)]
    assert [answer.ids for answer in generate(method.network, prompts, **options)] == expected
    for prompt, answer in zip(prompts, expected, strict=True):
        pieces = stream(
            method.network, prompt, tokenizer_decode=lambda x: "".join(map(chr, x)), stop_ids=[1], max_new_tokens=8
        )
        assert "".join(pieces) == "".join(map(chr, answer))
    with method.without_adaptation():
        plain = [answer.ids for answer in generate(method.network, prompts, **options)]
    assert plain == [answer.ids for answer in generate(network_of(name), prompts, **options)]
    assert plain != expected


@pytest.mark.parametrize("encoder", ["mlp", "lstm"])
def test_an_encoder_learns_and_leaves_soft_tokens_only(encoder, tmp_path):
    method = soft(num_tokens=4, encoder=encoder, encoder_hidden=16)
    assert any("mlp_head" in name for name in method.trained())
    assert any("lstm_head" in name for name in method.trained()) == (encoder == "lstm")
    losses = learn(method)
    assert losses[-1] < losses[0]
    method.save(tmp_path)
    loaded = peft.PeftModel.from_pretrained(network_of("glm"), str(tmp_path))
    assert sum(p.numel() for p in loaded.prompt_encoder.parameters() if p.shape == (4, 64)) == 4 * 64
    assert (logits(loaded) - logits(method.network)).abs().max() < 1e-5
    with method.without_adaptation():
        assert torch.equal(logits(method.network), logits(network_of("glm")))


@pytest.mark.parametrize(
    ("knobs", "pattern"),
    [
        ({"num_tokens": 0}, r"method\.num_tokens is 0: must be 1 or more"),
        ({"init": "text"}, r"method\.init is 'text' and method\.init_text empty"),
        ({"init_text": "a b"}, r"method\.init_text is set and method\.init 'vocabulary'"),
        (
            {"init": "text", "init_text": "a", "encoder": "mlp"},
            r"method\.encoder is 'mlp': an encoder begins",
        ),
        ({"encoder_hidden": 8}, r"method\.encoder_hidden is 8"),
        ({"encoder": "mlp", "encoder_dropout": 0.1}, r"method\.encoder_dropout is 0\.1"),
    ],
)
def test_what_cannot_be_is_refused_by_name(knobs, pattern):
    with pytest.raises(UserError, match=pattern) as caught:
        made("prompt_tuning", **knobs)
    assert len(caught.value.problems) == 1


def test_networks_that_need_token_ids_are_refused_by_name():
    with pytest.raises(UserError, match=r"'chatglm' finds its positions .* use method=ptuning_v2"):
        made("prompt_tuning").examine(skeleton_of("chatglm"))
    assert not type(made("prompt_tuning")).packs
