"""Tools and calls of tools, in the ways that rows write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glm_lightning.data.formats.fields import from_json, kind, plain_values
from glm_lightning.data.judging.kinds import Fault
from glm_lightning.types import ToolCall

_EMPTY: tuple[Any, ...] = (None, "", [])


def tools_of(value: Any, faults: list[str], *, where: str) -> tuple[Mapping[str, Any], ...]:
    """Definitions of tools: a list of objects or its JSON text, each OpenAI's or a bare one with a name.

    Args:
        value: what the row has; null, "" and an empty list are no tools.
        faults: takes what is wrong.
        where: the name of the field, for messages.
    """
    value = from_json(value, where, faults, fault="tool_json")
    if value in _EMPTY:
        return ()
    if not isinstance(value, list):
        faults.append(Fault("tool_json", f"{where} must be a list of tools, not {kind(value)}"))
        return ()
    wrong = [problem for i, tool in enumerate(value) if (problem := _wrong_tool(tool, f"{where}[{i}]"))]
    faults += wrong
    return () if wrong else tuple(value)


def call_of(value: Any, faults: list[str], *, where: str, arguments: str = "arguments") -> ToolCall | None:
    """A call: an object with name and arguments, the arguments an object or its JSON text.

    Args:
        value: what the row has.
        faults: takes what is wrong.
        where: the name of the field, for messages.
        arguments: the key of the arguments.
    """
    if not isinstance(value, dict):
        faults.append(Fault("tool_json", f"{where} must be an object with name and {arguments}, not {kind(value)}"))
        return None
    name, given = value.get("name"), value.get(arguments)
    given = {} if given in _EMPTY else from_json(given, f"{where}.{arguments}", faults, fault="tool_json")
    if given is None:
        return None
    if not isinstance(name, str) or not name.strip():
        faults.append(Fault("tool_json", f"{where}.name must be the name of a tool, not {name!r}"))
    elif not isinstance(given, dict):
        faults.append(Fault("tool_json", f"{where}.{arguments} must be an object, not {kind(given)}"))
    elif not plain_values([name, given]):
        faults.append(Fault("tool_json", f"{where} holds what JSON cannot: an infinite number or half a character"))
    else:
        return ToolCall(name, given)
    return None


def calls_of(value: Any, faults: list[str], *, where: str) -> tuple[ToolCall, ...]:
    """Calls: one, or a list of them, bare or as OpenAI's ``{"type": "function", "function": {...}}``; or JSON text."""
    if value in _EMPTY:
        return ()
    value = from_json(value, where, faults, fault="tool_json")
    if value is None:
        return ()
    every = value if isinstance(value, list) else [value]
    inner = [call.get("function", call) if isinstance(call, dict) else call for call in every]
    places = [f"{where}[{i}]" if isinstance(value, list) else where for i in range(len(every))]
    calls = [call_of(call, faults, where=place) for call, place in zip(inner, places, strict=True)]
    return tuple(call for call in calls if call is not None)


def is_call(value: Any) -> bool:
    """Whether an object is a call and nothing else."""
    return isinstance(value, dict) and value.keys() == {"name", "arguments"} and isinstance(value["name"], str)


def _wrong_tool(tool: Any, where: str) -> Fault | None:
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    if not isinstance(function, dict):
        return Fault("tool_json", f"{where} must be an object, not {kind(tool)}")
    if not isinstance(function.get("name"), str) or not function["name"].strip():
        return Fault("tool_json", f"{where} must have a name, which is {function.get('name')!r}")
    if not isinstance(function.get("parameters"), dict | None):
        return Fault("tool_json", f"{where}.parameters must be an object, not {kind(function['parameters'])}")
    if not plain_values(tool):
        return Fault("tool_json", f"{where} holds what JSON cannot: an infinite number or half a character")
    return None
