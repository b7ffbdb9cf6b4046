"""Tools as GLM-4.5, 4.6 and 4.7 have them: calls in tags, one pair of tags for each argument's name and value."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from glm_lightning.templates.base import Known, Tools, without_beginning_of
from glm_lightning.templates.function_calls import function
from glm_lightning.types import ToolCall

_OPEN = "<tool_call>"
_CALL = re.compile(rf"{_OPEN}(.*?)</tool_call>", re.DOTALL)
_ARGUMENT = re.compile(r"\s*<arg_key>([^<]*)</arg_key>\s*<arg_value>(.*?)</arg_value>\s*", re.DOTALL)


def definitions(tools: Tools, *, line: str) -> str:
    """The official system text that shows tools; ``line`` is what separates the tags of a call."""
    shown = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    parts = ["<tool_call>{function-name}"]
    parts += [f"<arg_key>{{arg-key-{i}}}</arg_key>{line}<arg_value>{{arg-value-{i}}}</arg_value>" for i in (1, 2)]
    syntax = line.join([*parts, "...", "</tool_call>"])
    return (
        "\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        f"You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n{shown}\n</tools>\n\n"
        "For each function call, output the function name and arguments within the following XML format:\n"
        f"{syntax}"
    )


def write(call: ToolCall, *, line: str) -> str:
    """A call: texts as they are, all other values as JSON."""
    arguments = [
        f"<arg_key>{key}</arg_key>{line}<arg_value>{_written(value)}</arg_value>"
        for key, value in call.arguments.items()
    ]
    return line.join([f"<tool_call>{call.name}", *arguments, "</tool_call>"])


def read(text: str, *, tools: Known) -> tuple[str, tuple[ToolCall, ...]]:
    """Text without the calls in it, and the calls; one that is malformed stays text."""
    if tools is None:
        return text, ()
    types = {function(tool).get("name"): _types(function(tool)) for tool in tools}
    return extract(text, lambda found: _call(found, types))


def extract(text: str, parse: Callable[[str], ToolCall | None]) -> tuple[str, tuple[ToolCall, ...]]:
    """Text without the calls in it, and the calls; ``parse`` says what stands between a call's tags, if it is one."""
    calls: list[ToolCall] = []

    def taken(found: re.Match[str]) -> str:
        call = parse(found[1])
        if call is not None:
            calls.append(call)
        return found[0] if call is None else ""

    return _CALL.sub(taken, text), tuple(calls)


def closed(text: str, *, tools: Known) -> str:
    """A text that goes on, without the call that has begun at its end, or may have."""
    if tools is None:
        return text
    done = max((found.end() for found in _CALL.finditer(text)), default=0)
    begun = text.find(_OPEN, done)
    if begun >= 0:
        return text[:begun]
    return text[:done] + without_beginning_of(text[done:], _OPEN)


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _call(text: str, types: Mapping[Any, Mapping[str, Any]]) -> ToolCall | None:
    head, tag, _ = text.partition("<arg_key>")
    name, position, arguments = head.strip(), len(head), {}
    while tag and position < len(text):
        found = _ARGUMENT.match(text, position)
        if found is None:
            return None
        arguments[found[1]] = _value(found[2], types.get(name, {}).get(found[1]))
        position = found.end()
    return ToolCall(name, arguments) if name and not set(name) & set("<>\n") else None


def _value(text: str, kind: Any) -> Any:
    """A text stays one if the definition says so; without a definition, JSON is read as JSON."""
    if kind == "string":
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _types(definition: Mapping[str, Any]) -> Mapping[str, Any]:
    parameters = definition.get("parameters")
    properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
    if not isinstance(properties, Mapping):
        return {}
    return {name: each.get("type") for name, each in properties.items() if isinstance(each, Mapping)}
