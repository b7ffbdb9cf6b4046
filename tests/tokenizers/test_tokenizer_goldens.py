"""The real files: ids and text of the official tokenizers, as recorded and as their libraries give them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from official_rules import FILES, Official, no_names, official
from transformers import GlmConfig, PreTrainedConfig

from glm_lightning import tokenizers
from glm_lightning.inference.generation import pieces
from glm_lightning.tokenizers import Tokenizer

SHARED = (Path(__file__).resolve().parents[2] / "../shared").resolve()
pytestmark = [pytest.mark.shared, pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared")]

FOLDERS = {"chatglm": "chatglm-6b", "chatglm2": "chatglm3-6b", "chatglm3": "chatglm3-6b", "glm4": "glm-4-9b-chat"}
MODELS = {"chatglm": "chatglm-6b", "chatglm2": "chatglm2-6b", "chatglm3": "chatglm3-6b", "glm4": "glm-4-9b-chat"}
# Our name of a token that the recorded table calls otherwise, after the code of its release.
SAME = {"<bos>": "<s>", "<eos>": "</s>", "<pad>": "<unk>"}


@pytest.fixture(scope="module", params=FOLDERS)
def generation(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def golden(generation: str) -> dict[str, Any]:
    return dict(json.loads((SHARED / f"golden/tokenizers/tokenizer_{generation}.json").read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def folder(generation: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(generation)
    name = FILES.get(generation, "tokenizer.model")
    shutil.copyfile(SHARED / "tokenizers" / FOLDERS[generation] / name, folder / name)
    shutil.copyfile(SHARED / "golden/models/real-vocab" / MODELS[generation] / "config.json", folder / "config.json")
    return folder


@pytest.fixture(scope="module")
def ours(folder: Path) -> Tokenizer:
    return tokenizers.load(folder)


@pytest.fixture(scope="module")
def rules(folder: Path, generation: str) -> Official:
    return official(folder, generation)


def test_every_golden_string_has_the_official_ids_and_text(golden: dict[str, Any], ours: Tokenizer) -> None:
    strings = golden["strings"]
    assert len(strings) >= 60
    assert ours.encode([each["text"] for each in strings]) == [each["ids"] for each in strings]
    assert [ours.decode(each["ids"]) for each in strings] == [each["decode"] for each in strings]


def test_control_tokens_have_the_official_ids(golden: dict[str, Any], ours: Tokenizer) -> None:
    first = golden["model"].startswith("ChatGLM-6B")
    for name, i in golden["special_ids"].items():
        if name in ours.controls or name in SAME:
            assert ours.controls[name if first else SAME.get(name, name)] == i
        else:  # a piece that stands for white space
            assert ours.encode([ours.decode([i])])[0][-1] == i


def test_the_fast_form_has_the_golden_ids(golden: dict[str, Any], ours: Tokenizer) -> None:
    strings = [each for each in golden["strings"] if no_names(each["text"], ours.controls)]
    assert len(strings) > 40
    assert [ours.hf.encode(s["text"], add_special_tokens=False) for s in strings] == [s["ids"] for s in strings]
    assert [ours.hf.decode(s["ids"]) for s in strings] == [s["decode"] for s in strings]


def lines() -> Iterator[str]:
    for name in (
        "advertisegen/adgen.jsonl",
        "mix/bilingual_sft.jsonl",
        "alpaca/alpaca_zh_demo.json",
        "pretrain/wiki_demo.txt",
    ):
        yield from (SHARED / "data" / name).read_text(encoding="utf-8").splitlines()[:400]
    yield from Path(__file__).read_text(encoding="utf-8").splitlines()


def test_real_text_has_the_ids_of_the_official_libraries(rules: Official, ours: Tokenizer) -> None:
    texts = list(lines())
    expected = [rules.encode(text) for text in texts]
    assert ours.encode(texts) == expected
    assert [ours.decode(ids) for ids in expected] == [rules.decode(ids) for ids in expected]
    plain = [ours.hf.encode(text, add_special_tokens=False) for text in texts[::20]]
    wrong = sum(
        a != b and no_names(text, ours.controls) for text, a, b in zip(texts[::20], plain, expected[::20], strict=True)
    )
    assert wrong == 0


def test_streamed_pieces_of_every_golden_string(golden: dict[str, Any], ours: Tokenizer) -> None:
    for each in golden["strings"]:
        streamed = list(pieces(each["ids"], ours.decode))
        assert "".join(streamed) == each["decode"]
        assert "\ufffd" in each["decode"] or not any("\ufffd" in piece for piece in streamed)


def test_the_official_configuration_and_the_official_file_belong_together(folder: Path, ours: Tokenizer) -> None:
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    rows = raw.get("vocab_size", raw.get("padded_vocab_size"))
    config = PreTrainedConfig.from_dict(raw | {"vocab_size": rows})
    assert tokenizers.check(ours, config) == []


def test_the_first_layout_of_chatglm_6b_is_refused_with_both_numbers(ours: Tokenizer, generation: str) -> None:
    if generation == "chatglm":
        old = GlmConfig(vocab_size=150_528, bos_token_id=150_004, eos_token_id=150_005, pad_token_id=3)
        problems = tokenizers.check(ours, old)
        assert ["150004" in problems[0], "130004" in problems[0]] == [True, True]
        assert "150005" in problems[1]
