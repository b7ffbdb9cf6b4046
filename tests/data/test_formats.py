from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from glm_lightning.data.formats.alpaca import Alpaca
from glm_lightning.data.formats.base import Format
from glm_lightning.data.formats.messages import Messages
from glm_lightning.data.formats.prompt_response import PromptResponse
from glm_lightning.data.formats.rounds import Rounds
from glm_lightning.data.formats.sharegpt import ShareGPT
from glm_lightning.types import Message, Origin, UserError

ORIGIN = Origin(Path("f.jsonl"), 7)


def turn(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def said(speaker: str, value: Any) -> dict[str, Any]:
    return {"from": speaker, "value": value}


def part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


PARAGRAPH = Rounds(rounds="paragraph", question="q", answer="a", question_optional=True)
Q, A = turn("user", "q"), turn("assistant", "a")
PLAIN = (Message("user", "q"), Message("assistant", "a"))


@pytest.mark.parametrize(
    ("format", "row", "expected"),
    [
        (Messages(), {"messages": [Q, A]}, PLAIN),
        (Messages(), {"messages": [turn("system", ""), Q, A]}, (Message("system", ""), *PLAIN)),
        (Messages(), {"messages": [Q, turn("assistant", "a", loss=True)]}, (PLAIN[0], Message("assistant", "a", True))),
        (
            Messages(),
            {"messages": [Q, turn("assistant", "c", loss=False), turn("observation", "r"), A], "tools": None},
            (PLAIN[0], Message("assistant", "c", False), Message("tool", "r"), PLAIN[1]),
        ),
        (Messages(messages="talk", role="who", content="what"),
         {"talk": [{"who": "user", "what": "q"}, {"who": "assistant", "what": "a"}]}, PLAIN),
        (Alpaca(), {"instruction": "q", "input": None, "output": "a", "id": 7, "meta": {"a": [1]}}, PLAIN),
        (Alpaca(), {"instruction": "q", "output": "a"}, PLAIN),
        (Alpaca(), {"instruction": "q", "input": "x", "output": "a"}, (Message("user", "q\nx"), PLAIN[1])),
        (
            Alpaca(),
            {"instruction": "q", "output": "a", "system": "s", "history": [["q0", "a0"]]},
            (Message("system", "s"), Message("user", "q0"), Message("assistant", "a0", True), *PLAIN),
        ),
        (PromptResponse(), {"prompt": "q", "response": "a", "history": []}, PLAIN),
        (PromptResponse(prompt="content", response="summary"), {"content": "q", "summary": "a"}, PLAIN),
        (
            PromptResponse(learn_history=False),
            {"prompt": "q", "response": "a", "history": [["q0", "a0"]]},
            (Message("user", "q0"), Message("assistant", "a0", False), *PLAIN),
        ),
        (ShareGPT(), {"conversations": [said("human", "q"), said("gpt", "a")]}, PLAIN),
        (ShareGPT(), {"conversations": [said("user", "q"), said("assistant", "a")], "system": "s"},
         (Message("system", "s"), *PLAIN)),
        (ShareGPT(role="role", content="content"), {"conversations": [Q, A]}, PLAIN),
        (ShareGPT(), {"conversations": [said("user", "q"), said("assistant", ["a", "", " b"])]},
         (PLAIN[0], Message("assistant", "a\n\n b"))),
        (Rounds(), {"system": "s", "conversation": [{"human": "q", "assistant": "a"}] * 2},
         (Message("system", "s"), *PLAIN, *PLAIN)),
        (PARAGRAPH, {"id": 1, "paragraph": [{"q": "q", "a": ["a", "b"]}]}, (PLAIN[0], Message("assistant", "a\nb"))),
        (PARAGRAPH, {"paragraph": [{"a": "a"}, {"q": "", "a": "a"}]}, (Message("user", ""), PLAIN[1]) * 2),
        (Messages(), {"messages": [turn("user", [part("q"), part("!")]), A]}, (Message("user", "q!"), PLAIN[1])),
        (Messages(), {"messages": [turn("developer", "s"), Q, A]}, (Message("system", "s"), *PLAIN)),
        (Messages(), {"messages": [Q, turn("assistant", "b", weight=0), Q, turn("assistant", "a", weight=1.0)]},
         (PLAIN[0], Message("assistant", "b", False), PLAIN[0], Message("assistant", "a", True))),
        (Messages(), {"messages": [Q, turn("assistant", "a", reasoning_content="r")]},
         (PLAIN[0], Message("assistant", "a", reasoning="r"))),
        (Messages(), {"messages": json.dumps([Q, A])}, PLAIN),
        (Alpaca(), {"instruction": "q", "output": "a", "history": '[["q0", "a0"]]'},
         (Message("user", "q0"), Message("assistant", "a0", True), *PLAIN)),
        (Alpaca(), {"instruction": "q", "output": "a", "history": ""}, PLAIN),
    ],
)  # fmt: skip
def test_rows_are_read(format: Format, row: dict[str, Any], expected: tuple[Message, ...]) -> None:
    conversation = format.parse(row, ORIGIN)
    assert conversation.messages == expected
    assert conversation.origin == ORIGIN


@pytest.mark.parametrize(
    ("format", "row", "expected"),
    [
        (Messages(), {"messages": None}, ["messages is null"]),
        (Messages(), {"messages": []}, ["messages is empty"]),
        (Messages(), {"messages": "hi"}, ["must be a list of turns, not a text"]),
        (Messages(), {"messages": ["hi", Q]}, ["messages[0] must be an object, not a text"]),
        (Messages(), {"messages": [turn("User", "q"), turn("bot", "a")]}, ["'User'", "'bot'", "system, user, "]),
        (Messages(), {"messages": [turn(["user"], "q"), A]}, ["['user'] is no role"]),
        (Messages(), {"messages": [Q, turn("assistant", None)]}, ["messages[1].content is null"]),
        (Messages(), {"messages": [Q, turn("assistant", " \n")]}, ["messages[1].content is empty"]),
        (Messages(), {"messages": [Q, turn("assistant", ["a"])]},
         ['messages[1].content[0] must be {"type": "text"', "not a text"]),
        (Messages(), {"messages": [Q, turn("assistant", "\ud800")]}, ["surrogate"]),
        (Messages(), {"messages": [A, Q, A]}, ["turn 1 is of assistant", "system or user"]),
        (Messages(), {"messages": [turn("system", "s"), A]}, ["turn 2 is of assistant"]),
        (Messages(), {"messages": [Q, A, turn("system", "s"), Q, A]}, ["turn 3 is of system"]),
        (Messages(), {"messages": [turn("system", "s"), turn("system", "s"), Q, A]}, ["turn 2 is of system"]),
        (Messages(), {"messages": [Q, Q, A]}, ["turn 2 is of user"]),
        (Messages(), {"messages": [turn("system", "s")]}, ["nothing to learn"]),
        (Messages(), {"messages": [Q, A, Q]}, ["last turn is of user"]),
        (Messages(), {"messages": [Q, turn("assistant", "a", loss=False)]}, ["no answer is to be learned"]),
        (Messages(), {"messages": [Q, turn("assistant", "a", loss=0.5)]}, ["messages[1].loss must be true or false"]),
        (Messages(), {"messages": [turn("user", "q", loss=True), A]}, ["messages[0].loss is True on a turn of user"]),
        (Messages(), {"conversations": [said("human", "q")]}, ["no messages", "conversations", "data=sharegpt"]),
        (Messages(), {"version": 1, "data": [{"messages": [Q, A]}]}, ["version, data", "if data holds the rows"]),
        (Alpaca(), {"instruction": None, "output": None}, ["instruction is null", "output is null"]),
        (Alpaca(), {"messages": [Q, A]}, ["no instruction", "data=messages"]),
        (Alpaca(), {"instruction": "q", "output": 3.3}, ["output must be text, not a number"]),
        (Alpaca(), {"instruction": "q", "output": ""}, ["output is empty"]),
        (Alpaca(), {"instruction": "q", "output": "a", "history": ["q", "a"]}, ["history must be a list of"]),
        (Alpaca(), {"instruction": "q", "output": "a", "history": [["q", None]]}, ["history[0] answer is null"]),
        (PromptResponse(), {"prompt": None, "response": "a"}, ["prompt is null"]),
        (ShareGPT(), {"conversations": [said("alice", "q"), said("gpt", "a")]}, ["[0].from 'alice'", "human, gpt"]),
        (ShareGPT(), {"conversations": [{"human": "q"}]}, ["None is no role", "no conversations[0].value"]),
        (Rounds(), {"conversation": [{"human": "q"}]}, ["no conversation[0].assistant"]),
        (Rounds(), {"conversation": [{"human": "", "assistant": "a"}]}, ["conversation[0].human is empty"]),
        (Rounds(), {"conversation": [{"human": "q", "assistant": ["a", 1]}]}, ["assistant line must be text"]),
        (Messages(), {"messages": "[{'role': 'user'}]"}, ["messages: not JSON", "character 3"]),
        (PromptResponse(), {"prompt": "q", "response": "a", "history": "[[1"}, ["history: not JSON"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_origin_and_field(format: Format, row: dict[str, Any], expected: list[str]) -> None:
    with pytest.raises(UserError) as error:
        format.parse(row, ORIGIN)
    assert all(problem.startswith("f.jsonl:7: ") for problem in error.value.problems)
    for text in expected:
        assert text in str(error.value)


def test_null_never_becomes_text() -> None:
    row = {"instruction": "q", "input": None, "output": "a", "system": None, "history": None}
    assert not any("None" in message.content for message in Alpaca().parse(row, ORIGIN).messages)


def test_the_fingerprint_follows_settings_and_class() -> None:
    prints = [Alpaca(), replace(Alpaca(), output="answer"), PromptResponse(), Messages(), ShareGPT()]
    assert len({format.fingerprint for format in prints}) == 5
    assert Alpaca().fingerprint == Alpaca().fingerprint
