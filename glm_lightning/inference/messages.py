"""OpenAI's messages and tools as a conversation, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from glm_lightning.types import ROLES, Conversation, Message, ToolCall, UserError

Turns = Sequence[Mapping[str, Any]]
"""OpenAI's messages: ``[{"role": "user", "content": "..."}, ...]``."""

Definitions = Sequence[Mapping[str, Any]]
"""OpenAI's tools: ``[{"type": "function", "function": {"name": ..., "parameters": {...}}}, ...]``."""


def conversation(messages: Turns, tools: Definitions | None = None) -> Conversation:
    """Messages with ``tool_calls`` (arguments as JSON text or as an object) and ``reasoning_content``, and tools.

    Raises:
        UserError: everything that is wrong with them.
    """
    problems: list[str] = [] if messages else ["messages: is empty; give at least one turn"]
    turns = tuple(_message(message, f"messages[{i}]", problems) for i, message in enumerate(messages))
    for i, tool in enumerate(tools or ()):
        if not isinstance(tool, Mapping):
            problems.append(f"tools[{i}]: must be an object, not {tool!r}")
    if problems:
        raise UserError(problems)
    return Conversation(turns, tools=tuple(tools or ()))


def openai_form(conversation: Conversation) -> dict[str, Any]:
    """``messages``, and ``tools`` where there are some, as OpenAI writes them; results name the calls they answer."""
    turns: list[dict[str, Any]] = []
    unanswered: list[str] = []
    for message in conversation.messages:
        turn: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.reasoning is not None:
            turn["reasoning_content"] = message.reasoning
        if message.tool_calls:
            unanswered = [f"call_{len(turns)}_{number}" for number in range(len(message.tool_calls))]
            turn["tool_calls"] = list(map(_openai_call, unanswered, message.tool_calls))
        if message.role == "tool" and unanswered:
            turn["tool_call_id"] = unanswered.pop(0)
        turns.append(turn)
    tools = [tool if "function" in tool else {"type": "function", "function": tool} for tool in conversation.tools]
    return {"messages": turns} | ({"tools": tools} if tools else {})


def _openai_call(name: str, call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)}
    return {"id": name, "type": "function", "function": function}


def _message(message: Mapping[str, Any], where: str, problems: list[str]) -> Message:
    role, content = message.get("role"), message.get("content")
    reasoning, loss = message.get("reasoning_content"), message.get("loss")
    calls = _calls(message.get("tool_calls") or (), where, problems)
    if content is None and calls:
        content = ""
    if role not in ROLES or not isinstance(content, str):
        problems.append(f"{where}: needs a role of {', '.join(ROLES)} and a text as content, not {dict(message)!r}")
        return Message("user", "")
    if not isinstance(reasoning, str | None):
        problems.append(f"{where}.reasoning_content: must be text, not {reasoning!r}")
    if not isinstance(loss, bool | None):
        problems.append(f"{where}.loss: must be true or false, not {loss!r}")
    extra = {"tool_calls": calls, "reasoning_content": reasoning, "loss": loss}
    if role != "assistant" and (given := [key for key, value in extra.items() if value]):
        problems.append(f"{where}: {', '.join(given)} on a turn of {role}; only answers have them")
    return Message(role, content, loss, reasoning=reasoning, tool_calls=calls)


def _calls(value: Any, where: str, problems: list[str]) -> tuple[ToolCall, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        problems.append(f"{where}.tool_calls: must be a list of calls, not {value!r}")
        return ()
    calls = [_call(each, f"{where}.tool_calls[{i}]", problems) for i, each in enumerate(value)]
    return tuple(call for call in calls if call is not None)


def _call(value: Any, where: str, problems: list[str]) -> ToolCall | None:
    function = value.get("function", value) if isinstance(value, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        problems.append(f'{where}: must be {{"function": {{"name": ..., "arguments": ...}}}}, not {value!r}')
        return None
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            problems.append(f"{where}: its arguments are not valid JSON: {error}: {arguments[:80]!r}")
            return None
    if not isinstance(arguments, Mapping):
        problems.append(f"{where}: its arguments must be an object, not {arguments!r}")
        return None
    return ToolCall(function["name"], arguments)
