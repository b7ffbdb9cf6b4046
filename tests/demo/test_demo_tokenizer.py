from __future__ import annotations

from itertools import islice
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from glm_lightning import templates, tokenizers
from glm_lightning.demo import MODEL
from glm_lightning.demo import tokenizer as demo_tokenizer
from glm_lightning.demo.corpus import BASE_ZH, BRAND_ZH, base_corpus
from glm_lightning.inference.prompts import prompt_ids
from glm_lightning.tokenizers import Tokenizer

NAMES = [
    "<|endoftext|>",
    "[MASK]",
    "[gMASK]",
    "[sMASK]",
    "<sop>",
    "<eop>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|observation|>",
]


@pytest.fixture(scope="module")
def shipped() -> Tokenizer:
    return tokenizers.load(MODEL)


def test_control_tokens_come_last_in_the_order_of_glm4(shipped: Tokenizer) -> None:
    assert [shipped.control_id(name) for name in NAMES] == list(range(4086, 4096))
    assert shipped.vocab_size == 4096
    assert (shipped.hf.pad_token, shipped.hf.eos_token) == ("<|endoftext|>", "<|endoftext|>")


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back(shipped: Tokenizer, text: str) -> None:
    (ids,) = shipped.encode([text])
    assert shipped.decode(ids) == text


def test_training_again_gives_the_shipped_tokenizer(shipped: Tokenizer) -> None:
    assert demo_tokenizer.train().backend_tokenizer.to_str() == shipped.hf.backend_tokenizer.to_str()


def test_chat_template_renders_like_the_template_of_the_training() -> None:
    hf = AutoTokenizer.from_pretrained(MODEL)
    tokenizer = tokenizers.load(MODEL)
    template = templates.find("glm4", tokenizer, "glm")
    for document in islice(base_corpus(9), 200):
        (ids,) = prompt_ids([template.prompt(document.prompt())], tokenizer)
        messages = [{"role": m.role, "content": m.content} for m in document.prompt().messages]
        assert hf.apply_chat_template(messages, add_generation_prompt=True)["input_ids"] == ids


def test_a_value_has_the_same_ids_in_question_and_copy(shipped: Tokenizer) -> None:
    random = Random(1)
    for world in (BASE_ZH, BRAND_ZH):
        for _ in range(200):
            product = world.product(random)
            (copy,) = shipped.encode([world.advertise(product)])
            for ids in shipped.encode([value for _, value in product.attributes]):
                assert any(copy[i : i + len(ids)] == ids for i in range(len(copy)))
