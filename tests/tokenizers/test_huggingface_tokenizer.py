from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from glm_lightning import tokenizers
from glm_lightning.tokenizers import Tokenizer
from glm_lightning.tokenizers.huggingface import HuggingFaceTokenizer
from glm_lightning.types import UserError

NAMES = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
TEXTS = st.lists(st.one_of(st.text(max_size=8), st.sampled_from(NAMES)), max_size=6).map("".join)


@settings(max_examples=200, deadline=None)
@given(text=TEXTS)
def test_no_text_becomes_a_control_token_and_every_text_comes_back(chatml: Tokenizer, text: str) -> None:
    ids = chatml.encode([text])[0]
    assert not set(ids) & set(chatml.controls.values())
    assert chatml.decode(ids) == text


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=30).filter(lambda text: not any(name in text for name in NAMES)))
def test_ordinary_text_has_the_ids_of_the_transformers_tokenizer(chatml: Tokenizer, text: str) -> None:
    assert chatml.encode([text])[0] == chatml.hf.encode(text, add_special_tokens=False)


def test_many_texts_are_encoded_like_each_alone(chatml: Tokenizer) -> None:
    texts = ["", "a", "你好", "x <|im_end|>"]
    assert chatml.encode(texts) == [chatml.encode([text])[0] for text in texts]
    assert chatml.encode([]) == []


def test_control_tokens_are_left_out_of_text_or_shown(chatml: Tokenizer) -> None:
    ids = [*chatml.encode(["a b"])[0], chatml.control_id("<|im_end|>")]
    assert chatml.decode(ids) == "a b"
    assert chatml.decode(ids, control=True) == "a b<|im_end|>"


def test_an_unknown_control_token_is_refused_with_those_there_are(chatml: Tokenizer) -> None:
    with pytest.raises(UserError, match=r"<\|user\|>.*<\|im_end\|>"):
        chatml.control_id("<|user|>")


def test_a_unigram_model_that_lists_its_control_tokens_cannot_find_them_in_text() -> None:
    pieces = [("<unk>", 0.0), ("</s>", 0.0), *((c, -2.0) for c in "</s>abc")]
    backend = Backend(models.Unigram(pieces, unk_id=0))
    backend.add_special_tokens(["</s>"])
    backend.decoder = decoders.Fuse()
    ours = HuggingFaceTokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>"))
    assert ours.hf.encode("a</s>", add_special_tokens=False)[-1] == ours.control_id("</s>")
    ids = ours.encode(["a</s>"])[0]
    assert ours.control_id("</s>") not in ids
    assert ours.decode(ids) == "a</s>"


def test_tokens_in_angle_bars_are_control_tokens_even_where_the_file_does_not_say_so() -> None:
    backend = Backend(models.BPE({c: i for i, c in enumerate("<|role>a")}, []))
    backend.decoder = decoders.Fuse()
    backend.add_tokens([AddedToken("<|role|>", special=False, normalized=False), AddedToken("aa", normalized=False)])
    ours = HuggingFaceTokenizer(PreTrainedTokenizerFast(tokenizer_object=backend))
    assert list(ours.controls) == ["<|role|>"]
    assert ours.decode(ours.encode(["<|role|>"])[0]) == "<|role|>"
    assert len(ours.encode(["aa"])[0]) == 1, "an added token that is ordinary text stays one token"


def test_words_of_their_own_behind_control_tokens_keep_their_ids() -> None:
    backend = Backend(models.BPE({"a": 0, "<": 1, ">": 2}, []))
    backend.add_special_tokens([AddedToken("<|end|>"), AddedToken("<|user|>")])
    backend.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)])
    hf = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")
    tokenizer = HuggingFaceTokenizer(hf)
    text = "<think>a</think>a"
    assert tokenizer.encode([text]) == [hf.encode(text)] == [[5, 0, 6, 0]]
    assert not {3, 4} & set(tokenizer.encode(["<|end|>a<|user|>"])[0])


def test_texts_behind_a_control_token_get_no_prefix_space() -> None:
    backend = Backend(models.BPE({"▁": 0, "a": 1}, []))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.add_special_tokens(["</s>"])
    ours = HuggingFaceTokenizer(PreTrainedTokenizerFast(tokenizer_object=backend))
    assert ours.encode(["a"]) == [ours.hf.encode("</s>a", add_special_tokens=False)[1:]] == [[1]]


def test_saved_and_read_again_it_is_the_same(chatml: Tokenizer, tmp_path: Path) -> None:
    chatml.save(tmp_path)
    again = tokenizers.load(tmp_path)
    assert again.fingerprint == chatml.fingerprint
    assert again.encode(["你好 <|im_end|>"]) == chatml.encode(["你好 <|im_end|>"])
    assert (again.vocab_size, again.pad_id) == (chatml.vocab_size, chatml.pad_id)


def test_another_vocabulary_or_end_token_changes_the_fingerprint(chatml: Tokenizer, tmp_path: Path) -> None:
    chatml.save(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    settings = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps(settings | {"eos_token": "<|endoftext|>"}), encoding="utf-8")
    assert tokenizers.load(tmp_path).fingerprint != chatml.fingerprint


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=str(tmp_path)):
        tokenizers.load(tmp_path)
    with pytest.raises(UserError, match="missing"):
        tokenizers.load(tmp_path / "missing")


def test_a_folder_that_asks_for_remote_code_is_refused(tmp_path: Path) -> None:
    settings = {"tokenizer_class": "Odd", "auto_map": {"AutoTokenizer": ["odd.Odd", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (tmp_path / "odd.py").write_text("raise SystemExit('ran')\n", encoding="utf-8")
    with pytest.raises(UserError, match="never run"):
        tokenizers.load(tmp_path)
