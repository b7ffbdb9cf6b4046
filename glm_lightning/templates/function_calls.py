"""Tools as ChatGLM3, GLM-4, GLM-4-0414 and GLM-Z1 have them: a call is the function's name, a line break, arguments."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from glm_lightning.templates.base import Known, Tools
from glm_lightning.types import Message, Segment, ToolCall

Text = Callable[[str, str], list[Segment]]
"""Segments of a block from its first line, the name of a function or nothing, and what follows the line break."""

Reader = Callable[[str, int], tuple[dict[str, Any], int] | None]
"""The arguments that stand in a text at a position, and where they end; None if there are none."""

Beginning = Callable[[str], bool]
"""Whether a text, the end of one that goes on, may be the beginning of arguments."""

_NAME = re.compile(r"([^\s{}]+) ?\n")
_BEGUN_NAME = re.compile(r"[^\s{}]* ?")
_USUAL_NAME = re.compile(r"[\w.-]*", re.ASCII)
"""What names of functions look like: where nobody says which there are, a line of Chinese is none."""

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


def begins_json(text: str) -> bool:
    """A JSON object; see `Beginning`."""
    return not text or text.startswith("{")


def read(text: str, *, arguments: Reader, tools: Known, anywhere: bool = False) -> tuple[str, tuple[ToolCall, ...]]:
    """Content and calls of a generated text, which ends with its calls if there are any.

    A call behind content is one only if its name is among ``tools``, or if its syntax is such that it can stand
    ``anywhere``: an answer may well end with a word and a JSON object. Unknown names among known tools are text.
    """
    names = _names(tools)
    for start in _places(text, names, tools=tools, anywhere=anywhere):
        calls = _calls(text, start, arguments)
        if calls and all(_is_name(call.name, names) for call in calls):
            return text[:start].removeprefix("\n").removesuffix("\n"), calls
    return text.removeprefix("\n"), ()


def settled(text: str, *, arguments: Reader, begins: Beginning, tools: Known, anywhere: bool = False) -> str:
    """The content of a text that goes on, up to where calls may begin; see `read`.

    That they are calls is only known at the end: there must be nothing but calls.
    """
    names = _names(tools)
    for start in _places(text, names, tools=tools, anywhere=anywhere):
        if _may_become_calls(text, start, names, arguments, begins):
            return text[:start].removeprefix("\n").removesuffix("\n")
    return text.removeprefix("\n")


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


def _names(tools: Known) -> frozenset[Any]:
    return frozenset(function(tool).get("name") for tool in tools or ())


def _is_name(name: str, names: Collection[Any]) -> bool:
    return name in names if names else _USUAL_NAME.fullmatch(name) is not None


def _places(text: str, names: Collection[Any], *, tools: Known, anywhere: bool) -> Iterator[int]:
    """Where calls may begin: no place, the beginning, or every line's."""
    if tools is not None:
        yield 0
    if names or (tools is not None and anywhere):
        yield from (found.end() for found in re.finditer("\n", text))


def _may_become_calls(text: str, position: int, names: Collection[Any], arguments: Reader, begins: Beginning) -> bool:
    """Whether what stands at ``position`` is the beginning of calls up to the end of a text that goes on."""
    while name := _NAME.match(text, position):
        if not _is_name(name[1], names):
            return False
        found = arguments(text, name.end())
        if found is None:
            return begins(text[name.end() :])
        position = found[1]
    rest = text[position:]
    begun = _BEGUN_NAME.fullmatch(rest)
    if begun is None:
        return not rest.strip()
    known = any(str(name).startswith(rest.removesuffix(" ")) for name in names)
    return known if names else _USUAL_NAME.fullmatch(rest.removesuffix(" ")) is not None


def _calls(text: str, position: int, arguments: Reader) -> tuple[ToolCall, ...]:
    """The calls from ``position`` to the end of the text; none if anything else is there."""
    calls = []
    end = len(text.rstrip())
    while position < end:
        name = _NAME.match(text, position)
        found = arguments(text, name.end()) if name else None
        if name is None or found is None:
            return ()
        calls.append(ToolCall(name[1], found[0]))
        position = found[1]
    return tuple(calls)
