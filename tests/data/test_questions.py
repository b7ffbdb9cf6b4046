"""Rows to be answered, in every format, with answers and without."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from glm_lightning.data.formats.recognition import every
from glm_lightning.data.inputs import Inputs, sources_of
from glm_lightning.data.questions import Question, questions
from glm_lightning.data.reading import Problems
from glm_lightning.types import Conversation, Message

CALL = {"name": "weather", "arguments": {"city": "北京"}}
TOOL = {"name": "weather", "parameters": {}}
USER, FIRST, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a1"}, "the answer"
LAST: dict[str, Any] = {"role": "assistant", "content": ANSWER}
HUMAN, GPT = {"from": "human", "value": "q"}, {"from": "gpt", "value": ANSWER}

ROWS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "alpaca": ("alpaca", {"instruction": "q", "input": "x", "output": ANSWER}, {"instruction": "q", "input": "x"}),
    "dolly": (
        "alpaca",
        {"instruction": "q", "context": "x", "response": ANSWER},
        {"instruction": "q", "context": "x", "response": ""},
    ),
    "adgen": ("prompt_response", {"content": "q", "summary": ANSWER}, {"content": "q"}),
    "gsm8k": ("prompt_response", {"question": "q", "answer": ANSWER}, {"question": "q"}),
    "thudm": (
        "prompt_response",
        {"prompt": "q", "response": ANSWER, "history": [["q0", "a0"]]},
        {"prompt": "q", "history": [["q0", "a0"]], "response": None},
    ),
    "messages": (
        "messages",
        {"messages": [{"role": "system", "content": "s"}, USER, FIRST, USER, LAST]},
        {"messages": [{"role": "system", "content": "s"}, USER, FIRST, USER]},
    ),
    "openai tools": (
        "messages",
        {
            "messages": [USER, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "r"}, LAST],
            "tools": [TOOL],
        },
        {
            "messages": [USER, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "r"}],
            "tools": [TOOL],
        },
    ),
    "an answer that calls": (
        "messages",
        {"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}], "tools": [TOOL]},
        {"messages": [USER, {"role": "assistant", "content": ""}], "tools": [TOOL]},
    ),
    "messages in CSV": (
        "messages",
        {"messages": json.dumps([USER, LAST])},
        {"messages": json.dumps([USER])},
    ),
    "sharegpt": ("sharegpt", {"conversations": [HUMAN, GPT]}, {"conversations": [HUMAN]}),
    "chatglm3": (
        "chatglm3",
        {
            "conversations": [USER, {"role": "tool", "name": "w", "parameters": {}, "observation": "r"}, LAST],
            "tools": [TOOL],
        },
        {"conversations": [USER, {"role": "tool", "name": "w", "parameters": {}, "observation": "r"}], "tools": [TOOL]},
    ),
    "glm4_tools": (
        "glm4_tools",
        {"messages": [{"role": "system", "content": "", "tools": [TOOL]}, USER, LAST]},
        {"messages": [{"role": "system", "content": "", "tools": [TOOL]}, USER]},
    ),
    "rounds": (
        "rounds",
        {"conversation": [{"human": "q0", "assistant": "a0"}, {"human": "q", "assistant": ANSWER}]},
        {"conversation": [{"human": "q0", "assistant": "a0"}, {"human": "q"}]},
    ),
}


def read(path: Path, format: str = "auto") -> tuple[list[Question], list[str]]:
    problems = Problems()
    inputs = Inputs.of(sources_of(path, key="INPUT", format=format), asked=True)
    return list(questions(inputs, problems)), problems.texts


def written(tmp_path: Path, *rows: dict[str, Any]) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return path


def test_every_format_of_conversations_is_here() -> None:
    assert {format for format, _, _ in ROWS.values()} == every().keys() - {"text", "preference"}


@pytest.mark.parametrize("format", ["auto", "named"])
@pytest.mark.parametrize("name", ROWS)
def test_a_row_asks_the_same_with_its_answer_and_without(tmp_path: Path, name: str, format: str) -> None:
    named, whole, lacking = ROWS[name]
    if format == "named" and name in ("dolly", "adgen", "gsm8k"):
        pytest.skip("has columns of its own, which the name alone does not tell")
    chosen = "auto" if format == "auto" else named
    (answered,), no_problems = read(written(tmp_path, whole), chosen)
    assert no_problems == []
    assert answered.answered is not None
    assert answered.answered.answer() == (ANSWER if "calls" not in name else "")
    assert answered.answered.prompt() == answered.asked
    (asked,), no_problems = read(written(tmp_path, lacking), chosen)
    assert no_problems == []
    assert asked.asked == answered.asked
    assert asked.answered is None
    assert asked.row == lacking


def test_rows_with_and_without_answers_may_stand_in_one_file(tmp_path: Path) -> None:
    for name in ("alpaca", "thudm", "sharegpt", "rounds", "gsm8k"):
        _, whole, lacking = ROWS[name]
        found, problems = read(written(tmp_path, lacking, lacking, whole, lacking))
        assert problems == []
        assert [question.answered is not None for question in found] == [False, False, True, False]


def test_a_pair_asks_what_both_sides_answer(tmp_path: Path) -> None:
    (found,), _ = read(written(tmp_path, {"prompt": "q", "chosen": "good", "rejected": "bad"}))
    assert found.asked.messages == (Message("user", "q"),)
    assert found.answered is not None
    assert found.answered.answer() == "good"


def test_lines_of_a_text_are_questions(tmp_path: Path) -> None:
    path = tmp_path / "questions.txt"
    path.write_text("你好？\n\nwho are you\n", encoding="utf-8")
    found, _ = read(path)
    assert [question.asked for question in found] == [
        Conversation((Message("user", text),), question.asked.origin)
        for text, question in zip(("你好？", "who are you"), found, strict=True)
    ]
    assert [question.asked.origin.line for question in found if question.asked.origin] == [1, 3]


def test_bad_rows_are_told_and_the_others_are_read(tmp_path: Path) -> None:
    path = written(tmp_path, {"instruction": "q"}, {"instruction": ""}, {"instruction": 3}, {"instruction": "r"})
    path.write_text(path.read_text(encoding="utf-8") + "\n{torn", encoding="utf-8")
    found, problems = read(path)
    assert [question.asked.messages[0].content for question in found] == ["q", "r"]
    assert [problem.split(": ")[0].rpartition(":")[2] for problem in problems] == ["2", "3", "5"]
