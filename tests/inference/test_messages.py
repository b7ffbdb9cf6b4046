"""OpenAI's messages and tools as a conversation."""

from __future__ import annotations

from typing import Any

import pytest

from glm_lightning.inference.messages import conversation
from glm_lightning.types import Conversation, Message, ToolCall, UserError

TOOL = {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}


@pytest.mark.parametrize("arguments", ['{"city": "北京", "n": 1}', {"city": "北京", "n": 1}])
def test_calls_reasoning_results_and_tools(arguments: Any) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "find", "arguments": arguments}}
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "r"},
        {"role": "tool", "tool_call_id": "1", "content": "{}"},
        {"role": "assistant", "content": "a", "loss": False},
    ]
    assert conversation(messages, [TOOL]) == Conversation(
        (
            Message("user", "q"),
            Message("assistant", "", reasoning="r", tool_calls=(ToolCall("find", {"city": "北京", "n": 1}),)),
            Message("tool", "{}"),
            Message("assistant", "a", learn=False),
        ),
        tools=(TOOL,),
    )


@pytest.mark.parametrize("arguments", [None, "", {}, "{}"])
def test_a_call_without_arguments(arguments: Any) -> None:
    messages = [{"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": arguments}]}]
    assert conversation(messages).messages[0].tool_calls == (ToolCall("f", {}),)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"role": "assistant", "content": None}, "a text as content"),
        ({"role": "function", "content": "x"}, "needs a role of system, user, assistant, tool"),
        ({"role": "user", "content": "x", "reasoning_content": "r"}, "reasoning_content on a turn of user"),
        ({"role": "user", "content": "x", "loss": True}, "loss on a turn of user"),
        ({"role": "assistant", "content": "x", "loss": "no"}, "loss: must be true or false"),
        ({"role": "assistant", "content": "x", "reasoning_content": 1}, "reasoning_content: must be text"),
        ({"role": "assistant", "content": "x", "tool_calls": "f"}, "tool_calls: must be a list of calls"),
        ({"role": "assistant", "content": "x", "tool_calls": [{}]}, r"tool_calls\[0\]: must be"),
        ({"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": "{"}]}, "not valid JSON"),
        ({"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": [1]}]}, "must be an object"),
    ],
)
def test_what_is_wrong_is_said(message: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=rf"messages\[1\].*{reason}"):
        conversation([{"role": "user", "content": "q"}, message])


def test_everything_at_once() -> None:
    with pytest.raises(UserError) as caught:
        conversation([{"role": "x", "content": ""}, {"role": "user", "content": 1}], ["find"])  # type: ignore[list-item]
    assert len(caught.value.problems) == 3
