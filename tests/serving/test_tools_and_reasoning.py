"""What the generations write as calls and as reasoning arrives where OpenAI's clients look for it."""

from __future__ import annotations

import json

import openai
import pytest
from servers import running

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    },
}
MESSAGES = [{"role": "user", "content": "北京的天气?"}]
ARGUMENTS = {"city": "北京", "days": 2}
LINES = 'weather\n{"city": "北京", "days": 2}'
CODE = "weather\n```python\ntool_call(city='北京', days=2)\n```"
TAGS = (
    "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>北京</arg_value>\n"
    "<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n</tool_call>"
)
WAYS = {
    "chatglm3": CODE,
    "glm4": LINES,
    "glm4_0414": LINES,
    "glm_z1": f"hm\n</think>{LINES}",
    "glm4_5": f"\n<think>hm</think>\n{TAGS}",
    "glm4_7": f"hm</think>{TAGS}",
}


def collect(chunks):
    """What a client puts together of the pieces."""
    said = {"content": "", "reasoning": "", "calls": [], "reason": None, "pieces": 0}
    for chunk in chunks:
        for choice in chunk.choices:
            said["pieces"] += 1
            said["content"] += choice.delta.content or ""
            said["reasoning"] += getattr(choice.delta, "reasoning_content", None) or ""
            said["reason"] = choice.finish_reason or said["reason"]
            for call in choice.delta.tool_calls or ():
                assert call.index == len(said["calls"])
                said["calls"].append((call.function.name, json.loads(call.function.arguments), call.id))
    return said


@pytest.mark.parametrize("name", WAYS)
def test_a_call_at_once_and_in_pieces(told, name):
    library = told(name)
    library.tell(WAYS[name], MESSAGES, [WEATHER])
    with running(library) as server:
        asked = {"model": name, "messages": MESSAGES, "tools": [WEATHER], "temperature": 0}
        (choice,) = server.client.chat.completions.create(**asked).choices
        pieces = collect(server.client.chat.completions.create(**asked, stream=True))
    (call,) = choice.message.tool_calls
    assert (call.type, call.function.name, json.loads(call.function.arguments)) == ("function", "weather", ARGUMENTS)
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    ((_, _, number),) = pieces["calls"]
    assert pieces["calls"] == [("weather", ARGUMENTS, number)]
    assert number.startswith("call_")
    assert (pieces["reason"], pieces["content"]) == ("tool_calls", "")
    if "hm" in WAYS[name]:
        assert choice.message.reasoning_content == pieces["reasoning"] == "hm"


def test_the_whole_conversation_with_a_tool(told):
    """The call goes back as it came, with its result, and is rendered as the generation has it."""
    library = told("glm4")
    library.tell(f"\n好的\n{LINES}{LINES}", MESSAGES, [WEATHER])
    with running(library) as server:
        asked = {"model": "glm4", "tools": [WEATHER], "temperature": 0}
        message = server.client.chat.completions.create(**asked, messages=MESSAGES).choices[0].message
        assert (message.content, len(message.tool_calls)) == ("好的", 2)
        assert message.tool_calls[0].id != message.tool_calls[1].id
        first, second = (
            {"role": "tool", "tool_call_id": call.id, "content": f"{place} degrees"}
            for place, call in enumerate(message.tool_calls)
        )
        turns = [*MESSAGES, message.model_dump(exclude_none=True)]
        library.tell("\n晴", [*turns, first, second], [WEATHER])
        answers = {
            server.client.chat.completions.create(**asked, messages=[*turns, *results]).choices[0].message.content
            for results in ([first, second], [second, first])  # the ids say which is whose
        }
        one = server.client.chat.completions.create(**asked, messages=MESSAGES, parallel_tool_calls=False)
    assert answers == {"晴"}
    assert len(one.choices[0].message.tool_calls) == 1


@pytest.mark.parametrize("more", [{}, {"tools": [WEATHER], "tool_choice": "none"}])
def test_without_tools_a_call_is_text(told, more):
    library = told("glm4")
    library.tell(LINES, MESSAGES)
    with running(library) as server:
        asked = {"model": "glm4", "messages": MESSAGES, "temperature": 0, **more}
        (choice,) = server.client.chat.completions.create(**asked).choices
        pieces = collect(server.client.chat.completions.create(**asked, stream=True))
    assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == (LINES, None, "stop")
    assert (pieces["content"], pieces["calls"], pieces["reason"]) == (LINES, [], "stop")


def test_a_call_that_is_cut_off_is_text_and_too_long(told):
    library = told("glm4")
    library.tell(LINES, MESSAGES, [WEATHER])
    with running(library) as server:
        asked = {"model": "glm4", "messages": MESSAGES, "tools": [WEATHER], "temperature": 0, "max_tokens": 12}
        (choice,) = server.client.chat.completions.create(**asked).choices
        pieces = collect(server.client.chat.completions.create(**asked, stream=True))
    assert (choice.finish_reason, choice.message.tool_calls) == ("length", None)
    assert LINES.startswith(choice.message.content)
    assert (pieces["content"], pieces["reason"]) == (choice.message.content, "length")


@pytest.mark.parametrize(
    ("switch", "thinking"),
    [
        ({}, None),
        ({"extra_body": {"thinking": {"type": "disabled"}}}, False),
        ({"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}}, False),
        ({"extra_body": {"thinking": {"type": "enabled"}}}, True),
        ({"reasoning_effort": "none"}, False),
        ({"reasoning_effort": "high"}, None),
    ],
)
def test_reasoning_stands_beside_the_answer_and_can_be_switched(told, switch, thinking):
    library = told("glm4_7")
    text = "sunny" if thinking is False else "one two three</think>sunny"
    library.tell(text, MESSAGES, thinking=thinking)
    with running(library) as server:
        asked = {"model": "glm4_7", "messages": MESSAGES, "temperature": 0, **switch}
        message = server.client.chat.completions.create(**asked).choices[0].message
        pieces = collect(server.client.chat.completions.create(**asked, stream=True))
    assert message.content == pieces["content"] == "sunny"
    expected = "" if thinking is False else "one two three"
    assert (getattr(message, "reasoning_content", None) or "") == pieces["reasoning"] == expected


def test_reasoning_comes_in_pieces(told):
    library = told("glm_z1", seconds=0.02)
    library.tell("\nsome words that are thought\n</think>\n你好吗", MESSAGES)
    with running(library) as server:
        pieces = collect(
            server.client.chat.completions.create(model="glm_z1", messages=MESSAGES, temperature=0, stream=True)
        )
    assert (pieces["reasoning"], pieces["content"]) == ("some words that are thought", "你好吗")
    assert pieces["pieces"] > 8


def test_what_a_generation_does_not_know_is_refused(told):
    with running(told("chatglm2")) as server:
        for wrong in ({"tools": [WEATHER]}, {"messages": [{"role": "system", "content": "x"}, *MESSAGES]}):
            with pytest.raises(openai.BadRequestError, match="ChatGLM2"):
                server.client.chat.completions.create(**{"model": "chatglm2", "messages": MESSAGES, **wrong})


@pytest.mark.parametrize(
    "tools",
    [
        [{"type": "function"}],
        [{"type": "function", "function": {"name": ["a"]}}],
        [{"type": "function", "function": {"name": "two words"}}],
        [{"type": ["x"], "function": {"name": "a"}}],
        ["tool"],
    ],
)
def test_definitions_that_are_none_are_refused(told, tools):
    with running(told("glm4_5")) as server, pytest.raises(openai.BadRequestError, match="tools"):
        server.client.chat.completions.create(model="glm4_5", messages=MESSAGES, tools=tools)
