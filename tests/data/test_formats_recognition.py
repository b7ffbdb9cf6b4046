"""Formats are found from rows alone, and only where there is no doubt; documents and preference pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from glm_lightning.data.formats.preference import Preferences
from glm_lightning.data.formats.recognition import described, every, named, recognise
from glm_lightning.data.formats.text import Text
from glm_lightning.data.reading import Row
from glm_lightning.types import Document, Message, Origin, UserError

PATH = Path("f.jsonl")
ORIGIN = Origin(PATH, 7)
Q, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
HUMAN, GPT = {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}


def seen(*values: dict[str, Any]) -> str:
    return described(recognise([Row(value, line, 0.5) for line, value in enumerate(values, start=1)], PATH))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": "q", "input": "", "output": "a", "text": "whole prompt"}, "alpaca"),
        ({"instruction": "q", "context": "", "response": "a"}, "alpaca (input=context, output=response)"),
        ({"prompt": "q", "response": "a", "history": []}, "prompt_response"),
        ({"query": "q", "response": "a"}, "prompt_response (prompt=query)"),
        ({"question": "q", "answer": "a"}, "prompt_response (prompt=question, response=answer)"),
        ({"prompt": "q", "completion": "a"}, "prompt_response (response=completion)"),
        ({"messages": [Q, A], "source": "x"}, "messages"),
        ({"messages": '[{"role": "user", "content": "q"}]'}, "messages"),
        ({"messages": [{"role": "system", "content": "", "tools": []}, Q, A]}, "messages"),
        ({"messages": [{"role": "system", "content": "", "tools": [{"name": "f"}]}, Q, A]}, "glm4_tools"),
        ({"conversations": [HUMAN, GPT]}, "sharegpt"),
        ({"conversations": [Q, A]}, "chatglm3"),
        ({"conversation": [{"human": "q", "assistant": "a"}]}, "rounds"),
        ({"conversations": [HUMAN], "chosen": GPT, "rejected": GPT}, "preference (prompt=conversations)"),
        ({"instruction": "q", "input": "", "chosen": "a", "rejected": "b"}, "preference (prompt=instruction)"),
        ({"text": "t", "url": "u"}, "text"),
        ({"response": "t"}, "text (text=response)"),
    ],
)  # fmt: skip
def test_formats_are_recognised(row: dict[str, Any], expected: str) -> None:
    assert seen(row) == seen(*[row] * 9) == expected


def test_one_odd_row_changes_nothing() -> None:
    row = {"prompt": "q", "response": "a"}
    assert seen(row, {"x": 1}, row, {"messages": [Q, A]}, row) == "prompt_response"


def test_histories_that_repeat_earlier_rows_are_not_learned_twice() -> None:
    rows = [{"prompt": "q", "response": "a", "history": []}, {"prompt": "r", "response": "b", "history": [["q", "a"]]}]
    assert seen(*rows) == "prompt_response (learn_history=False)"
    assert seen(rows[1], rows[0]) == "prompt_response"


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{"a": 1}, {"b": 2}], ["f.jsonl:1: rows of no format that is known; the keys are a"]),
        ([{"data": [{"messages": []}]}], ["if data holds the rows, write that list alone"]),
        ([{"messages": [Q, A], "prompt": "q", "response": "a"}],
         ["may be read as messages, prompt_response", "data.format=messages"]),
        ([{"messages": [Q, A]}, {"text": "t"}, {"question": "q", "answer": "a"}],
         ["line 1 looks like messages, line 2 looks like text, line 3 looks like prompt_response (prompt=question"]),
    ],
)  # fmt: skip
def test_where_there_is_doubt_the_candidates_are_named(rows: list[dict[str, Any]], expected: list[str]) -> None:
    with pytest.raises(UserError) as error:
        seen(*rows)
    assert len(error.value.problems) == 1
    for text in expected:
        assert text in str(error.value)


def test_every_format_has_a_name_and_fits_nothing_in_an_empty_row() -> None:
    assert set(every()) == {"alpaca", "chatglm3", "glm4_tools", "messages", "preference", "prompt_response", "rounds",
                            "sharegpt", "text"}  # fmt: skip
    for name, each in every().items():
        assert named(name) == each()
        assert each().name == name
        assert not any(dialect.fits({}) for dialect in each.dialects())
    with pytest.raises(UserError, match=r"'alpacca': must be auto or one of .* \(did you mean alpaca\?\)"):
        named("alpacca")


def test_a_document_is_a_text() -> None:
    assert Text().parse({"text": "t"}, ORIGIN) == Document("t", ORIGIN)
    with pytest.raises(UserError, match=r"f.jsonl:7: text is empty"):
        Text().parse({"text": " "}, ORIGIN)


CHAT = Message("user", "q"), Message("assistant", "a"), Message("assistant", "b")


@pytest.mark.parametrize(
    ("prompt", "row"),
    [
        ("prompt", {"prompt": "q", "chosen": "a", "rejected": "b"}),
        ("conversations", {"conversations": [HUMAN], "chosen": GPT, "rejected": GPT | {"value": "b"}}),
        ("prompt", {"prompt": [Q], "chosen": [A], "rejected": [A | {"content": "b"}]}),
        ("prompt", {"prompt": "q", "chosen": [Q, A], "rejected": [Q, A | {"content": "b"}]}),
    ],
)
def test_preference_pairs_of_every_dialect(prompt: str, row: dict[str, Any]) -> None:
    pair = Preferences(prompt=prompt).parse(row, ORIGIN)
    assert (pair.chosen.messages, pair.rejected.messages) == (CHAT[:2], (CHAT[0], CHAT[2]))
    assert pair.said == CHAT


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "q", "chosen": "a"}, "no rejected"),
        ({"prompt": "q", "chosen": ["a", "b"], "rejected": "c"}, "chosen must be a text, a turn or a list of turns"),
        ({"prompt": "q", "chosen": [], "rejected": "c"}, "not an empty list"),
        ({"prompt": "q", "chosen": "", "rejected": "c"}, "chosen is empty"),
        ({"prompt": "q", "chosen": [Q, A], "rejected": [Q | {"content": "x"}, A]}, "must answer the same turns"),
        ({"prompt": [Q, A], "chosen": "a", "rejected": "b"}, "turn 3 is of assistant"),
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "chosen and rejected are the same, so neither is better"),
    ],
)
def test_what_is_wrong_with_a_pair_is_said(row: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=f"f.jsonl:7: .*{expected}"):
        Preferences().parse(row, ORIGIN)
