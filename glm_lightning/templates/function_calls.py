"""Tools as ChatGLM3, GLM-4, GLM-4-0414 and GLM-Z1 have them: a call is the function's name, a line break, arguments."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from glm_lightning.templates.base import Tools
from glm_lightning.types import Message, Segment, ToolCall

Text = Callable[[str, str], list[Segment]]
"""Segments of a block from its first line, the name of a function or nothing, and what follows the line break."""

Reader = Callable[[str, int], tuple[dict[str, Any], int] | None]
"""The arguments that stand in a text at a position, and where they end; None if there are none."""

_NAME = re.compile(r"([^\s{}]+) ?\n")
_JSON = json.JSONDecoder()


def apart(first: str, rest: str) -> list[Segment]:
    """A block whose first line is encoded on its own."""
    return [Segment(f"{first}\n"), Segment(rest)]


def together(first: str, rest: str) -> list[Segment]:
    """A block encoded as one text."""
    return [Segment(f"{first}\n{rest}")]


def blocks(
    message: Message, *, text: Text, arguments: Callable[[ToolCall], str], continued: bool = False
) -> list[Segment]:
    """An answer's content and its calls, an `<|assistant|>` in front of all but the first.

    Content in front of a call ends with a line break, so that the call stands on a line of its own. What an answer has
    ``continued`` (its reasoning) stands for the first block if that is a call.
    """
    calls = [(call.name, arguments(call)) for call in message.tool_calls]
    content = [("", message.content + "\n" * bool(calls))] if message.content or not calls else []
    segments: list[Segment] = []
    for number, block in enumerate([*content, *calls]):
        if number or (continued and not content):
            segments.append(Segment(control="<|assistant|>"))
        segments += text(*block)
    return segments


def as_json(call: ToolCall) -> str:
    """Arguments as JSON on one line."""
    return json.dumps(call.arguments, ensure_ascii=False)


def read_json(text: str, position: int) -> tuple[dict[str, Any], int] | None:
    """A JSON object; see `Reader`."""
    try:
        value, end = _JSON.raw_decode(text, position)
    except (ValueError, RecursionError):
        return None
    return (value, end) if isinstance(value, dict) else None


def read(text: str, *, arguments: Reader, tools: Tools, anywhere: bool = False) -> tuple[str, tuple[ToolCall, ...]]:
    """Content and calls of a generated text, which ends with its calls if there are any.

    A call behind content is one only if its name is among ``tools``, or if its syntax is such that it can stand
    ``anywhere``: an answer may well end with a word and a JSON object. Unknown names among known tools are text.
    """
    names = {function(tool).get("name") for tool in tools}
    for start in _line_starts(text):
        calls = _calls(text, start, arguments)
        if calls and (all(call.name in names for call in calls) if names else anywhere or start == 0):
            return text[:start].removeprefix("\n").removesuffix("\n"), calls
    return text.removeprefix("\n"), ()


def function(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """A definition without OpenAI's wrapping."""
    inner = tool.get("function")
    return inner if isinstance(inner, Mapping) else tool


def unnamed(tools: Tools, *, model: str) -> list[str]:
    """What is wrong with definitions that have no name, or are tools of a kind that is no function."""
    return [
        f"{model} knows functions only, and tools[{i}] has no name: {str(dict(tool))[:80]}; "
        'write {"type": "function", "function": {"name": ..., "description": ..., "parameters": {...}}}'
        for i, tool in enumerate(tools)
        if not isinstance(function(tool).get("name"), str)
    ]


def section(tool: Mapping[str, Any]) -> str:
    """A function's section in the system text of GLM-4 and its successors."""
    definition = json.dumps(function(tool), ensure_ascii=False, indent=4)
    return f"## {function(tool)['name']}\n\n{definition}\n在调用上述函数时，请使用 Json 格式表示调用的参数。"


def _line_starts(text: str) -> Iterator[int]:
    yield 0
    yield from (found.end() for found in re.finditer("\n", text))


def _calls(text: str, position: int, arguments: Reader) -> tuple[ToolCall, ...]:
    """The calls from ``position`` to the end of the text; none if anything else is there."""
    calls = []
    while position < len(text.rstrip()):
        name = _NAME.match(text, position)
        found = arguments(text, name.end()) if name else None
        if name is None or found is None:
            return ()
        calls.append(ToolCall(name[1], found[0]))
        position = found[1]
    return tuple(calls)
