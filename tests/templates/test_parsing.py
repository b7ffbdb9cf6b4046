"""What generated texts say, in each generation's own way of writing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from generations import TOKENS

from glm_lightning import templates
from glm_lightning.templates import Template
from glm_lightning.tokenizers import Tokenizer
from glm_lightning.types import Message, ToolCall

WEATHER = {"name": "weather", "parameters": {"properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}}
CALL = ToolCall("weather", {"city": "北京", "days": 1})
CODE = "weather\n```python\ntool_call(city='北京', days=1)\n```"
LINES = 'weather\n{"city": "北京", "days": 1}'
TAGS = (
    "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>北京</arg_value>\n"
    "<arg_key>days</arg_key>\n<arg_value>1</arg_value>\n</tool_call>"
)
JOINED = TAGS.replace("\n", "")


@pytest.fixture
def find(make_tokenizer: Callable[..., Tokenizer]) -> Callable[[str], Template]:
    return lambda name: templates.find(name, make_tokenizer(TOKENS.get(name, TOKENS["glm4"]), eos=None), "glm")


def said(content: str, *calls: ToolCall, reasoning: str | None = None) -> Message:
    return Message("assistant", content, reasoning=reasoning, tool_calls=calls)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("chatglm", "你好,世界!a,b 是:1", said("你好，世界！a,b 是：1")),
        ("chatglm", " 好?!\n3,4", said("好？!\n3,4")),
        ("chatglm2", "\n 你好,a ", said("你好,a")),
        # sentencepiece puts a blank in front of every text encoded on its own
        ("chatglm3", "\n 你好", said("你好")),
        ("chatglm3", f" {CODE}", said("", CALL)),
        ("chatglm3", f"\n 我查一下\n{CODE}", said("我查一下", CALL)),
        ("chatglm3", CODE.replace("1)", "__import__('os'))"), said(CODE.replace("1)", "__import__('os'))"))),
        ("chatglm3", CODE.removesuffix("```"), said(CODE.removesuffix("\n```"))),
        ("glm4", "\nanswer\n", said("answer\n")),
        ("glm4", LINES, said("", CALL)),
        ("glm4", LINES + LINES, said("", CALL, CALL)),
        ("glm4", f"\n好的\n{LINES}", said("好的", CALL)),
        ("glm4", "\nan object:\nresult\n{}", said("an object:\nresult\n{}")),  # no tool of that name
        ("glm4", "other\n{}", said("other\n{}")),
        ("glm4", LINES[:-1], said(LINES[:-1])),
        ("glm4_0414", LINES.replace("\n", " \n"), said("", CALL)),
        ("glm_z1", "\nr\n</think>\na", said("a", reasoning="r")),
        ("glm_z1", "\n</think>\na", said("a")),
        ("glm_z1", f"\nr\n</think>{LINES}", said("", CALL, reasoning="r")),
        ("glm_z1", "\nr and so on", said("", reasoning="r and so on")),
        ("glm4_5", "\n<think>r</think>\na", said("a", reasoning="r")),
        ("glm4_5", "\n<think></think>\na", said("a")),
        ("glm4_5", f"\n<think>r</think>\na\n{TAGS}\n{TAGS}", said("a", CALL, CALL, reasoning="r")),
        ("glm4_5", "\n<think>r", said("", reasoning="r")),
        ("glm4_5", f"\n<think></think>\n{TAGS[:-12]}", said(TAGS[:-12].strip())),
        ("glm4_5", TAGS.replace("<arg_value>", "", 1), said(TAGS.replace("<arg_value>", "", 1))),
        ("glm4_5", "\na </think> b", said("a </think> b")),
        ("glm4_7", "r</think>a", said("a", reasoning="r")),
        ("glm4_7", "</think>a", said("a")),
        ("glm4_7", f"r</think>{JOINED}", said("", CALL, reasoning="r")),
        ("glm4_7", "r", said("", reasoning="r")),
        ("glm_edge", f"\n{LINES}", said(LINES)),
    ],
)
def test_a_generated_text(find: Callable[[str], Template], name: str, text: str, expected: Message) -> None:
    assert find(name).parse(text, tools=[WEATHER]) == expected


@pytest.mark.parametrize("name", ["glm_z1", "glm4_5", "glm4_7"])
def test_where_the_prompt_has_switched_reasoning_off_there_is_none(find: Callable[[str], Template], name: str) -> None:
    assert find(name).parse("\na", thinking=False) == said("a")


@pytest.mark.parametrize(("value", "kind", "expected"), [("01", "string", "01"), ("1", None, 1), ("[1]", "array", [1])])
def test_definitions_tell_texts_from_numbers(
    find: Callable[[str], Template], value: str, kind: str | None, expected: Any
) -> None:
    text = f"</think><tool_call>f<arg_key>x</arg_key><arg_value>{value}</arg_value></tool_call>"
    tools = [{"function": {"name": "f", "parameters": {"properties": {"x": {"type": kind}}}}}] if kind else []
    assert find("glm4_7").parse(text, tools=tools) == said("", ToolCall("f", {"x": expected}))


def test_the_clean_answer_has_no_reasoning_and_calls_as_json(find: Callable[[str], Template]) -> None:
    text = f"\n<think>r</think>\na\n{TAGS}"
    assert find("glm4_5").clean(text) == 'a\n{"name": "weather", "arguments": {"city": "北京", "days": 1}}'
