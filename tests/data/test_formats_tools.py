"""Tools, their calls and results, in the ways that rows write them: all of them give the same conversation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from glm_lightning.data.formats.base import Format
from glm_lightning.data.formats.chatglm3 import ChatGLM3
from glm_lightning.data.formats.glm4_tools import Glm4Tools
from glm_lightning.data.formats.messages import Messages
from glm_lightning.data.formats.sharegpt import ShareGPT
from glm_lightning.types import Conversation, Message, Origin, ToolCall, UserError

ORIGIN = Origin(Path("f.jsonl"), 7)
TOOL = {"name": "weather", "description": "天气", "parameters": {"type": "object", "properties": {}}}
OPENAI = {"type": "function", "function": TOOL}
ARGUMENTS = {"city": "北京", "days": 3, "exact": True, "near": None, "list": [1.5]}
CALL = {"name": "weather", "arguments": ARGUMENTS}
TOLD = "晴"
EXPECTED = (
    Message("user", "q"),
    Message("assistant", "", tool_calls=(ToolCall("weather", ARGUMENTS),)),
    Message("tool", TOLD),
    Message("assistant", "a"),
)
Q, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
HUMAN, GPT = {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}
SEEN = {"from": "observation", "value": TOLD}


def text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def asks(**more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": None, **more}


def messages(call: dict[str, Any], result: dict[str, Any], **row: Any) -> dict[str, Any]:
    return {"messages": [Q, call, result, A], **row}


ROWS: list[tuple[Format, dict[str, Any], tuple[dict[str, Any], ...]]] = [
    (Messages(), messages(asks(tool_calls=[{"id": "1", "type": "function", "function": CALL}]),
                          {"role": "tool", "tool_call_id": "1", "content": TOLD}, tools=[OPENAI]), (OPENAI,)),
    (Messages(), messages(asks(tool_calls=[{"function": CALL | {"arguments": text(ARGUMENTS)}}]),
                          {"role": "tool", "content": [{"type": "text", "text": TOLD}]}, tools=text([OPENAI])),
     (OPENAI,)),
    (Messages(), messages(asks(function_call=CALL | {"arguments": text(ARGUMENTS)}),
                          {"role": "function", "name": "weather", "content": TOLD}, functions=[TOOL]), (TOOL,)),
    (ShareGPT(), {"conversations": [HUMAN, {"from": "function_call", "value": text(CALL)}, SEEN, GPT],
                  "tools": text([TOOL])}, (TOOL,)),
    (ShareGPT(), {"conversations": [{"from": "system", "value": "", "tools": text([TOOL])}, HUMAN,
                                    {"from": "function_call", "value": text([CALL])}, SEEN, GPT]}, (TOOL,)),
    (Glm4Tools(), {"messages": [{"role": "system", "content": "", "tools": [OPENAI]}, Q,
                                {"role": "assistant", "content": text(CALL)},
                                {"role": "observation", "content": TOLD}, A]}, (OPENAI,)),
    (ChatGLM3(), {"conversations": [Q, {"role": "tool", "name": "weather", "parameters": ARGUMENTS,
                                        "observation": TOLD}, A], "tools": [TOOL]}, (TOOL,)),
    (ChatGLM3(), {"conversations": [Q, {"role": "assistant", "metadata": "weather", "content":
      "```python\ntool_call(city='北京', days=3, exact=True, near=None, list=[1.5])\n```"},
      {"role": "observation", "content": TOLD}, A], "tools": text([TOOL])}, (TOOL,)),
]  # fmt: skip


@pytest.mark.parametrize(("format", "row", "tools"), ROWS)
def test_the_same_conversation_in_every_dialect(
    format: Format, row: dict[str, Any], tools: tuple[dict[str, Any], ...]
) -> None:
    parsed = format.parse(row, ORIGIN)
    said = tuple(message for message in parsed.messages if message.role != "system")
    assert Conversation(said, parsed.origin, parsed.tools) == Conversation(EXPECTED, ORIGIN, tools)
    assert list(said[1].tool_calls[0].arguments) == list(ARGUMENTS)
    assert type(said[1].tool_calls[0].arguments["exact"]) is bool


def test_what_is_said_before_a_call_belongs_to_it() -> None:
    call = {"role": "tool", "name": "f", "parameters": {}, "observation": {"x": "好"}}
    first = {"role": "assistant", "content": "let me see", "loss": False}
    parsed = ChatGLM3().parse({"conversations": [Q, first, call, call, A]}, ORIGIN)
    made = (ToolCall("f", {}),)
    assert parsed.messages[1:5] == (
        Message("assistant", "let me see", False, None, made), Message("tool", '{"x": "好"}'),
        Message("assistant", "", None, None, made), Message("tool", '{"x": "好"}'),
    )  # fmt: skip
    called = {"from": "function_call", "value": text(CALL)}
    shared = ShareGPT().parse({"conversations": [HUMAN, {"from": "gpt", "value": "hm"}, called, SEEN, GPT]}, ORIGIN)
    assert shared.messages[1] == Message("assistant", "hm", tool_calls=EXPECTED[1].tool_calls)
    thought = "我想想\n```python\ntool_call(a=-1)\n```"
    coded = [Q, {"role": "assistant", "metadata": "f", "content": thought}, {"role": "observation", "content": "1"}, A]
    assert ChatGLM3().parse({"conversations": coded}, ORIGIN).messages[1] == Message(
        "assistant", "我想想", tool_calls=(ToolCall("f", {"a": -1}),)
    )


def test_an_answer_in_json_is_a_call_only_where_tools_are_declared_or_a_result_follows() -> None:
    answer = {"role": "assistant", "content": text(CALL)}
    bare = Glm4Tools().parse({"messages": [Q, answer]}, ORIGIN)
    assert bare.messages[1] == Message("assistant", text(CALL))
    system = {"role": "system", "content": "s", "tools": [OPENAI]}
    declared = Glm4Tools().parse({"messages": [system, Q, answer]}, ORIGIN)
    assert declared.messages[2].tool_calls == EXPECTED[1].tool_calls
    other = {"role": "assistant", "content": '{"temperature": 3}'}
    assert Glm4Tools().parse({"messages": [system, Q, other]}, ORIGIN).messages[2].content == '{"temperature": 3}'


def test_empty_tools_are_none() -> None:
    for value in (None, "", [], "[]"):
        assert Messages().parse({"messages": [Q, A], "tools": value}, ORIGIN).tools == ()
        assert ShareGPT().parse({"conversations": [HUMAN, GPT], "tools": value}, ORIGIN).tools == ()


def bad_call(value: Any) -> dict[str, Any]:
    return messages(asks(tool_calls=value), {"role": "tool", "content": "r"})


@pytest.mark.parametrize(
    ("format", "row", "expected"),
    [
        (Messages(), {"messages": [Q, A], "tools": [{}]}, "tools[0] must have a name"),
        (Messages(), {"messages": [Q, A], "tools": ["f"]}, "tools[0] must be an object, not a text"),
        (Messages(), {"messages": [Q, A], "tools": TOOL}, "tools must be a list of tools, not an object"),
        (Messages(), {"messages": [Q, A], "tools": '[{"name": "f"'}, "tools: not JSON"),
        (Messages(), {"messages": [Q, A], "tools": "[] x"}, "tools: not JSON: more than one value"),
        (Messages(), {"messages": [Q, A], "tools": [TOOL | {"parameters": []}]}, "tools[0].parameters must be an obj"),
        (Messages(), {"messages": [Q, A], "tools": [TOOL | {"description": "\ud800"}]}, "tools[0] holds what JSON"),
        (Messages(), {"messages": [{"role": "system", "content": "", "tools": [TOOL]}, Q, A]}, "data=glm4_tools"),
        (Messages(), bad_call([{}]), "messages[1].tool_calls[0].name must be the name of a tool, not None"),
        (Messages(), bad_call("f(x)"), "messages[1].tool_calls must be an object with name"),
        (Messages(), bad_call([CALL | {"arguments": "{'city': 1}"}]), "tool_calls[0].arguments: not JSON"),
        (Messages(), bad_call([CALL | {"arguments": "[]"}]), "tool_calls[0].arguments must be an object, not a list"),
        (Messages(), bad_call([CALL | {"arguments": "北京"}]), "tool_calls[0].arguments must be an object, not a text"),
        (Messages(), bad_call([CALL | {"arguments": '{"a":1,"a":2}'}]), "the key 'a' stands twice"),
        (Messages(), bad_call([CALL | {"arguments": {"x": 1e999}}]), "tool_calls[0] holds what JSON cannot"),
        (Messages(), {"messages": [Q | {"tool_calls": [CALL]}, A]}, "a turn of user cannot call tools"),
        (Messages(), messages(asks(tool_calls=[CALL | {"id": "1"}]),
                              {"role": "tool", "tool_call_id": "2", "content": "r"}), "'2' answers no call"),
        (Messages(), {"messages": [Q, asks()]}, "messages[1].content is null"),
        (ShareGPT(), {"conversations": [HUMAN, {"from": "function_call", "value": ""}, SEEN, GPT]}, "holds no call"),
        (ShareGPT(), {"conversations": [HUMAN, {"from": "function_call", "value": text([{}])}, SEEN, GPT]}, "[0].name"),
        (Glm4Tools(), {"messages": [{"role": "system", "content": "", "tools": [OPENAI]}, Q, A,
                                    {"role": "observation", "content": "r"}, A]}, "must be an object with name"),
        (ChatGLM3(), {"conversations": [Q, {"role": "tool", "name": "f", "parameters": [1], "observation": "r"}, A]},
         "conversations[1].parameters must be an object"),
        (ChatGLM3(), {"conversations": [Q, {"role": "assistant", "metadata": "f", "content": "tool_call(open('x'))"}]},
         "must be tool_call(name=value"),
        (ChatGLM3(), {"conversations": [Q, {"role": "assistant", "metadata": "f", "content": "tool_call(a={1})"}]},
         "must be tool_call(name=value"),
        (ChatGLM3(), {"conversations": [Q, {"role": "assistant", "metadata": "f", "content": "os_call(a=1)"}]},
         "must be tool_call(name=value"),
        (ChatGLM3(), {"conversations": [Q, {"role": "assistant", "metadata": "f", "content": "tool_call(**{})"}]},
         "must be tool_call(name=value"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_tools_is_said(format: Format, row: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError) as error:
        format.parse(row, ORIGIN)
    assert len(error.value.problems) == 1, error.value.problems
    assert expected in error.value.problems[0]
