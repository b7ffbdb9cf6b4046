"""``glm show``: a row as the model sees it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.text import Text

from glm_lightning.data.encoding import Encoder
from glm_lightning.inference import show
from glm_lightning.inference.loading import load_words
from glm_lightning.types import Conversation, Message, UserError

ROWS = [
    {"messages": [{"role": "user", "content": "who are you"}, {"role": "assistant", "content": "an assistant"}]},
    {"messages": [{"role": "user", "content": "q1"}, {"role": "assistant", "content": "a1"},
                  {"role": "user", "content": "q2"}, {"role": "assistant", "content": "a2 <|user|>"}]},
]  # fmt: skip


@pytest.fixture
def shown(tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_glm: Path) -> Callable[..., str]:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n", encoding="utf-8")

    def run(*arguments: str) -> str:
        given = [str(path) if argument == "ROWS" else argument for argument in arguments]
        show.main([*given, "--model", str(tiny_glm)])
        return capsys.readouterr().out

    return run


def test_a_row_with_its_place_and_what_is_learned(shown: Callable[..., str]) -> None:
    text = shown("ROWS", "--row", "2")
    assert "rows.jsonl:2: 1 sample(s), template glm4" in text
    expected = "[gMASK]<sop><|user|>\nq1<|assistant|>[[\na1<|user|>]]\nq2<|assistant|>[[\na2 <|user|><|user|>]]"
    assert expected in text


def test_a_question_with_ids(shown: Callable[..., str]) -> None:
    text = shown("--question", "q", "--answer", "a", "--system", "s", "--ids")
    assert "<|system|>\ns<|user|>\nq<|assistant|>[[\na<|user|>]]" in text
    ids, labels = (json.loads(line.split(" ", 1)[1]) for line in text.splitlines()[-2:])
    assert len(ids) == len(labels)
    assert labels[-2:] == ids[-2:]


def test_no_weights_are_loaded(shown: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glm_lightning.models.Source.load", None)
    assert "template jinja" not in shown("ROWS")


def test_another_template_can_be_looked_at(shown: Callable[..., str]) -> None:
    assert "[[\n<think></think>\nan assistant<|user|>]]" in shown("ROWS", "--template", "glm4_5")


def test_what_is_cut_is_counted_where_it_was(shown: Callable[..., str]) -> None:
    text = shown("ROWS", "--row", "2", "--max-length", "20")
    assert "shortened to 20" in text
    assert "tokens ...]" in text
    assert "q1" not in text
    assert "<|user|>\nq2<|assistant|>" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ROWS", "--row", "3"], "--row is 3: there are 2 rows"),
        (["ROWS", "--row", "0"], "--row is 0: there are 2 rows"),
        (["ROWS", "--max-length", "0"], "--max-length is 0"),
        (["ROWS", "--answer", "a"], "give one of them"),
        (["--answer", "a"], "--question missing"),
        ([], "--question and --answer missing"),
    ],
)
def test_mistakes(shown: Callable[..., str], arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        shown(*arguments)


def test_colours_stand_on_what_is_learned_and_on_control_tokens(tiny_glm: Path) -> None:
    tokenizer, template = load_words(tiny_glm)
    talk = Conversation((Message("user", "你好"), Message("assistant", "我是一个助手。")))
    (encoded,) = Encoder(tokenizer=tokenizer, template=template, max_length=99).encode([talk])
    text = show.painted(tokenizer, encoded.sample())
    assert text.plain == "[gMASK]<sop><|user|>\n你好<|assistant|>\n我是一个助手。<|user|>"
    assert styled(text, show.LEARNED) == "\n我是一个助手。<|user|>"
    assert styled(text, show.CONTROL) == "[gMASK]<sop><|user|><|assistant|><|user|>"


def styled(text: Text, style: str) -> str:
    return "".join(text.plain[span.start : span.end] for span in text.spans if style in str(span.style))
