from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from official_rules import CORPUS, FILES, SPELLED, Official, no_names, official, write
from transformers import Glm4MoeLiteConfig, GlmConfig

from glm_lightning import tokenizers
from glm_lightning.inference.generation import pieces
from glm_lightning.tokenizers import Tokenizer
from glm_lightning.tokenizers.huggingface import HuggingFaceTokenizer
from glm_lightning.tokenizers.official import OfficialTokenizer
from glm_lightning.types import UserError

NAMES = ("[gMASK]", "<sop>", "sop", "<eop>", "<|user|>", "<|endoftext|>", "</s>", "<unk>", "<pad>")
PARTS = (*CORPUS, *NAMES, " ", "  ", " " * 79, " " * 163, "\n", "\t", "\r\n", "<0x41>", "▁", "哈哈", "=====", "é", "ｶﾞ")
TEXTS = st.lists(st.one_of(st.text(max_size=8), st.sampled_from(PARTS)), max_size=6).map("".join)


@settings(max_examples=150, deadline=None)
@given(text=TEXTS)
@example(text="")
@example(text="   ")
@example(text="<n><|tab|><|blank_2|>")
def test_ids_and_text_are_those_of_the_official_rules(rules: Official, ours: Tokenizer, text: str) -> None:
    ids = rules.encode(text)
    assert ours.encode([text]) == [ids]
    assert ours.decode(ids) == rules.decode(ids)


@settings(max_examples=150, deadline=None)
@given(text=TEXTS)
def test_no_text_becomes_a_control_token(ours: Tokenizer, text: str) -> None:
    assert not set(ours.encode([text])[0]) & set(ours.controls.values())


def test_many_texts_are_encoded_like_each_alone(ours: Tokenizer) -> None:
    texts = ["", *PARTS] * 20
    assert ours.encode(texts) == [ours.encode([text])[0] for text in texts]
    assert ours.encode([]) == []


def test_control_tokens_have_the_official_ids(rules: Official, ours: Tokenizer) -> None:
    behind = [name for name, i in sorted(ours.controls.items(), key=lambda item: item[1]) if i >= rules.size]
    shared = ["[MASK]", "[gMASK]", "[sMASK]"]
    roles = ["<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"]
    images = ["<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>"]
    expected = {
        "chatglm": [],
        "chatglm2": [*shared, "sop", "eop"],
        "chatglm3": [*shared, "sop", "eop", *roles],
        "glm4": ["<|endoftext|>", *shared, "<sop>", "<eop>", *roles, *images],
    }[rules.generation]
    assert behind == expected
    assert ours.vocab_size == rules.size + len(expected) == len(ours.hf)
    assert [ours.control_id(name) for name in expected] == list(range(rules.size, ours.vocab_size))
    assert not set(SPELLED) & set(ours.controls)
    pad = {"chatglm": 3, "glm4": rules.size}.get(rules.generation, 0)
    assert ours.pad_id == ours.hf.pad_token_id == pad


def test_control_tokens_are_left_out_of_text_or_shown(ours: Tokenizer) -> None:
    name = "[gMASK]"
    ids = [*ours.encode(["棉 a"])[0], ours.control_id(name), *ours.encode([" b"])[0], 10_000_000]
    assert ours.decode(ids, control=True) == ours.decode(ids[:-1], control=True)
    before, after = ours.decode(ids, control=True).split(name)
    assert ours.decode(ids) == before + after
    assert ours.decode([]) == ours.decode([ours.vocab_size]) == ""


IDS = st.lists(st.integers(0, 460), max_size=30)


@settings(max_examples=200, deadline=None)
@given(text=TEXTS, cut=st.integers(0, 20), ids=IDS)
def test_streamed_pieces_are_the_text_in_whole_characters(ours: Tokenizer, text: str, cut: int, ids: list[int]) -> None:
    spelled = {i for i in range(460) if ours.decode([i]) and ours.decode([i]) in "<n>|tab_blank"}
    for tokens in (ours.encode([text])[0][:cut], [i for i in ids if i not in spelled]):
        whole, streamed = ours.decode(tokens), list(pieces(tokens, ours.decode))
        assert "".join(streamed) == whole
        assert "\ufffd" in whole or not any("\ufffd" in piece for piece in streamed)


def test_a_stream_keeps_the_blanks_behind_a_piece_that_is_a_blank(rules: Official, ours: Tokenizer) -> None:
    first = ours.encode(["棉"])[0]
    blanks = [i for i in range(rules.size) if rules.decode([*first, i]) == "棉 "]
    assert blanks
    for blank in blanks:
        ids = [*first, blank, blank, *ours.encode(["The fox"])[0]]
        assert "".join(pieces(ids, ours.decode)) == rules.decode(ids)


@settings(max_examples=100, deadline=None)
@given(text=TEXTS)
def test_the_fast_form_has_the_same_ids(rules: Official, ours: Tokenizer, text: str) -> None:
    # Cuts with the same score may differ in the first generation's: see the next test.
    if rules.generation != "chatglm" and no_names(text, ours.controls):
        assert ours.hf.encode(text, add_special_tokens=False) == rules.encode(text)


def test_the_fast_form_of_the_first_generation_writes_and_folds_the_same(rules: Official, ours: Tokenizer) -> None:
    for text in (
        *CORPUS,
        "  a   b \n\t c",
        " x ",
        "\n",
        "<0x41>",
        "ﬁ①～　x",
        "e\u0323\u0302",
        "ｶﾞ",
        "\r\u200b",
        " " * 163,
    ):
        if no_names(text, ours.controls):
            ids = ours.hf.encode(text, add_special_tokens=False)
            assert ours.hf.decode(ids) == rules.decode(rules.encode(text))
            assert len(ids) == len(rules.encode(text))


def test_the_fast_form_finds_control_tokens_and_puts_them_where_the_official_does(ours: Tokenizer) -> None:
    for name, i in ours.controls.items():
        assert ours.hf.encode(name, add_special_tokens=False)[-1] == i
    text = ours.hf.encode("你好", add_special_tokens=False)
    start = "<sop>" if "<sop>" in ours.controls else "sop"
    around = [ours.control_id("[gMASK]"), ours.control_id(start)]
    first = "<ENC>" in ours.controls
    assert ours.hf.encode("你好") == ([*text, *around] if first else [*around, *text])
    assert "philosophy" in ours.hf.decode(ours.hf.encode("philosophy", add_special_tokens=False))


def test_saved_and_read_again_it_is_the_same(rules: Official, ours: Tokenizer, tmp_path: Path) -> None:
    ours.save(tmp_path)
    again = tokenizers.load(tmp_path)
    assert isinstance(again, OfficialTokenizer)
    assert again.fingerprint == ours.fingerprint
    assert (again.controls, again.vocab_size, again.pad_id) == (ours.controls, ours.vocab_size, ours.pad_id)
    assert again.encode(PARTS) == ours.encode(PARTS)
    again.save(tmp_path / "third")
    assert tokenizers.load(tmp_path / "third").fingerprint == ours.fingerprint


def test_a_tokenizer_json_that_was_changed_is_taken_at_its_word(ours: Tokenizer, tmp_path: Path) -> None:
    ours.save(tmp_path)
    ours.hf.backend_tokenizer.save(str(tmp_path / "tokenizer.json"), pretty=False)
    assert isinstance(tokenizers.load(tmp_path), HuggingFaceTokenizer)
    assert tokenizers.load(tmp_path).encode(["你好"]) == ours.encode(["你好"])


PLAIN = """
import json, pathlib, sys
from transformers import AutoTokenizer
texts = json.load(sys.stdin)
print(json.dumps({f: [AutoTokenizer.from_pretrained(f).encode(t, add_special_tokens=False) for t in texts]
                  for f in sys.argv[1:]}))
assert not any(name.startswith("glm_lightning") for name in sys.modules)
"""


def test_plain_transformers_reads_what_was_saved_without_any_code(tmp_path: Path) -> None:
    texts = [*CORPUS[:3], "  a   b\n\tc ", "你好", ""]
    expected = {}
    for generation in ("chatglm", "chatglm2", "chatglm3", "glm4"):
        write(tmp_path / "from" / generation, generation)
        tokenizer = tokenizers.load(tmp_path / "from" / generation)
        tokenizer.save(tmp_path / generation)
        expected[str(tmp_path / generation)] = tokenizer.encode(texts)
        (tmp_path / generation / "config.json").write_text('{"model_type": "chatglm"}', encoding="utf-8")
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run(
        [sys.executable, "-c", PLAIN, *expected],
        input=json.dumps(texts),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=env | {"HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == expected


def test_the_official_layout_is_written_back(rules: Official, ours: Tokenizer, tmp_path: Path) -> None:
    name = FILES.get(rules.generation, "tokenizer.model")
    ours.save(tmp_path / "saved")
    for tokenizer in (ours, tokenizers.load(tmp_path / "saved")):
        folder = tmp_path / "back"
        shutil.rmtree(folder, ignore_errors=True)
        tokenizer.save_official(folder)
        assert (folder / name).read_bytes() == (rules.folder / name).read_bytes()
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        assert config["auto_map"] == json.loads((rules.folder / "tokenizer_config.json").read_text())["auto_map"]
        assert config.get("num_image_tokens") == (0 if rules.generation == "chatglm" else None)
        assert tokenizers.load(folder).fingerprint == ours.fingerprint


def test_a_tokenizer_without_official_files_has_none_to_write(chatml: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not read from an official file"):
        chatml.save_official(tmp_path)


def test_it_can_be_sent_to_another_process(ours: Tokenizer, rules: Official) -> None:
    assert pickle.loads(pickle.dumps(ours)).encode(["你好 a"]) == [rules.encode("你好 a")]


def settings_of(folder: Path, name: str, **values: Any) -> None:
    (folder / name).write_text(json.dumps(values), encoding="utf-8")


@pytest.mark.parametrize(
    ("tokenizer_config", "config", "generation"),
    [
        ({}, {"model_type": "chatglm", "_name_or_path": "THUDM/chatglm2-6b"}, "chatglm2"),
        ({}, {"model_type": "chatglm", "_name_or_path": "THUDM/chatglm3-6b"}, "chatglm3"),
        ({"tokenizer_class": "ChatGLMTokenizer"}, {}, "chatglm3"),
        ({"tokenizer_class": "ChatGLMTokenizer", "name_or_path": "THUDM/chatglm2-6b-32k"}, {}, "chatglm2"),
        ({"name_or_path": "THUDM/chatglm2-6b", "chat_template": "[gMASK]sop<|user|>"}, {}, "chatglm3"),
    ],
)
def test_two_and_three_are_told_apart_by_what_the_files_hold(
    tmp_path: Path, tokenizer_config: dict[str, Any], config: dict[str, Any], generation: str
) -> None:
    folder = tmp_path / "chatglm2-6b"  # a name that says nothing
    write(folder, "chatglm3")
    settings_of(folder, "tokenizer_config.json", **tokenizer_config)
    settings_of(folder, "config.json", **config)
    assert ("<|user|>" in tokenizers.load(folder).controls) == (generation == "chatglm3")


def test_a_tokenizer_model_of_another_family_is_left_to_transformers(tmp_path: Path) -> None:
    write(tmp_path, "chatglm3")
    settings_of(tmp_path, "tokenizer_config.json", tokenizer_class="LlamaTokenizer")
    settings_of(tmp_path, "config.json", model_type="llama")
    assert not isinstance(tokenizers.load(tmp_path), OfficialTokenizer)


def test_a_bare_tokenizer_model_says_not_whose_it_is(tmp_path: Path) -> None:
    file = write(tmp_path, "chatglm3")
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match="no tokenizer in"):
        tokenizers.load(file.parent)


def test_tokens_that_the_settings_add_are_control_tokens(tmp_path: Path) -> None:
    write(tmp_path, "glm4")
    size = official(tmp_path, "glm4").size
    added = {str(size): {"content": "<|endoftext|>"}, str(size + 14): {"content": "<|more|>"}}
    settings_of(tmp_path, "tokenizer_config.json", tokenizer_class="ChatGLM4Tokenizer", added_tokens_decoder=added)
    ours = tokenizers.load(tmp_path)
    assert ours.control_id("<|more|>") == ours.hf.convert_tokens_to_ids("<|more|>") == size + 14
    assert size + 14 not in ours.encode(["<|more|>"])[0]
    ours.save(tmp_path / "saved")
    assert tokenizers.load(tmp_path / "saved").controls == ours.controls
    added[str(size + 16)] = {"content": "<|gap|>"}
    settings_of(tmp_path, "tokenizer_config.json", tokenizer_class="ChatGLM4Tokenizer", added_tokens_decoder=added)
    with pytest.raises(UserError, match="leaves gaps"):
        tokenizers.load(tmp_path)


def test_a_chat_template_is_kept(tmp_path: Path) -> None:
    write(tmp_path, "chatglm3")
    settings_of(
        tmp_path, "tokenizer_config.json", tokenizer_class="ChatGLMTokenizer", chat_template="{{ messages }}<|user|>"
    )
    first = tokenizers.load(tmp_path)
    first.save(tmp_path / "a")
    tokenizers.load(tmp_path / "a").save(tmp_path / "b")
    assert tokenizers.load(tmp_path / "b").hf.chat_template == first.hf.chat_template == "{{ messages }}<|user|>"


@pytest.mark.parametrize("generation", ["chatglm", "chatglm3", "glm4"])
def test_a_broken_file_is_named(tmp_path: Path, generation: str) -> None:
    file = write(tmp_path, generation)
    file.write_bytes(b"AAAA 0\nB 1\n" if generation == "glm4" else b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UserError, match=str(file)):
        tokenizers.load(tmp_path)


def test_broken_settings_are_named(tmp_path: Path) -> None:
    write(tmp_path, "chatglm")
    (tmp_path / "tokenizer_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"tokenizer_config\.json: not valid JSON"):
        tokenizers.load(tmp_path)


def test_a_hub_name_fetches_the_tokenizer_files_of_its_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "chatglm3")
    asked: dict[str, Any] = {}

    def snapshot_download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.update(name=name, revision=revision, allow_patterns=allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert isinstance(tokenizers.load("THUDM/chatglm3-6b", revision="v1"), OfficialTokenizer)
    assert (asked["name"], asked["revision"]) == ("THUDM/chatglm3-6b", "v1")
    assert not any(pattern.endswith((".py", ".bin", "*")) for pattern in asked["allow_patterns"])


def test_a_hub_name_that_cannot_be_had_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    def snapshot_download(*_: Any, **__: Any) -> str:
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", snapshot_download)
    monkeypatch.setattr("glm_lightning.tokenizers.huggingface.AutoTokenizer.from_pretrained", snapshot_download)
    with pytest.raises(UserError, match=r"THUDM/none.*no connection"):
        tokenizers.load("THUDM/none")


def config_of(ours: Tokenizer, **changes: Any) -> Any:
    values = {"vocab_size": ours.vocab_size + 10, "pad_token_id": ours.pad_id, "bos_token_id": None}
    values |= {"eos_token_id": [ours.pad_id], "gmask_token_id": ours.control_id("[gMASK]")}
    return GlmConfig(**values | changes)


def test_a_tokenizer_belongs_to_the_weights_it_was_made_for(ours: Tokenizer) -> None:
    assert tokenizers.check(ours, config_of(ours)) == []


def test_an_embedding_with_too_few_rows_is_refused_with_both_numbers(ours: Tokenizer) -> None:
    (problem,) = tokenizers.check(ours, config_of(ours, vocab_size=300))
    assert str(ours.vocab_size) in problem
    assert "300" in problem


@pytest.mark.parametrize("key", ["eos_token_id", "bos_token_id", "pad_token_id", "gmask_token_id", "mask_token_id"])
def test_an_id_that_is_no_such_control_token_is_refused_with_both_numbers(ours: Tokenizer, key: str) -> None:
    wrong = ours.vocab_size + 3
    value = [ours.pad_id, wrong] if key == "eos_token_id" else wrong
    (problem,) = tokenizers.check(ours, config_of(ours, **{key: value}))
    assert f"{key} is {wrong}" in problem
    assert str(ours.control_id("[MASK]" if key == "mask_token_id" else "[gMASK]")) in problem


def test_a_begin_id_that_only_the_class_of_the_configuration_names_is_no_fault(ours: Tokenizer) -> None:
    ids = {"vocab_size": ours.vocab_size, "pad_token_id": ours.pad_id, "eos_token_id": [ours.pad_id]}
    flash = Glm4MoeLiteConfig(**ids)
    assert flash.bos_token_id == 0
    assert tokenizers.check(ours, flash) == []
    (problem,) = tokenizers.check(ours, Glm4MoeLiteConfig(**ids, bos_token_id=ours.vocab_size + 3))
    assert "bos_token_id" in problem


def test_ids_of_the_first_releases_are_recognised(ours: Tokenizer) -> None:
    old = ours.control_id("[gMASK]") + 20_000
    (problem,) = tokenizers.check(ours, config_of(ours, vocab_size=150_528, gmask_token_id=old))
    assert "first releases of ChatGLM-6B" in problem


def test_configurations_of_other_families_may_name_what_they_like(chatml: Tokenizer) -> None:
    config = SimpleNamespace(get_text_config=lambda: config, to_dict=lambda: {"vocab_size": 1000, "eos_token_id": 999})
    assert tokenizers.check(chatml, config) == []
