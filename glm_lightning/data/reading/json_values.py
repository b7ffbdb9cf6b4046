"""JSON as the standard has it: no NaN, no key twice in an object."""

from __future__ import annotations

import json
from typing import Any

from glm_lightning.data.judging.kinds import Fault
from glm_lightning.data.reading.base import RowError


def decoder() -> json.JSONDecoder:
    """One that refuses what Python's own lets pass."""
    return json.JSONDecoder(parse_constant=_no_constant, object_pairs_hook=_object)


def check_row(value: Any, trailing: str = "") -> None:
    """Raise `RowError` for what is no object, or has something behind it."""
    if trailing:
        what = "a comma behind the object" if trailing.strip() == "," else "more than one JSON value on the line"
        raise RowError("syntax", what)
    if not isinstance(value, dict):
        names = {list: "an array", str: "a text", type(None): "null", bool: "a truth value"}
        raise RowError("type", f"a row must be an object, not {names.get(type(value), 'a number')}")


def check_end(text: str, end: int) -> None:
    """Raise `JSONDecodeError` if a text goes on behind its value, which ends at ``end``."""
    if end < len(text):
        raise json.JSONDecodeError("more than one value", text, end)


def reason(error: ValueError | RecursionError, *, with_place: bool = True) -> str:
    """Why something was not decoded; ``with_place`` adds the character of a text's fault."""
    if isinstance(error, RecursionError):
        return "brackets nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        place = f" at character {error.pos + 1}" if with_place else ""
        return f"not JSON: {error.msg.removesuffix(' at')}{place}"
    return str(error)


def fault(error: ValueError | RecursionError, text: str) -> Fault:
    """What is said of a row that is refused."""
    return Fault(error.kind if isinstance(error, RowError) else "syntax", text)


def _no_constant(name: str) -> None:
    raise RowError("syntax", f"{name} is not JSON; write null or leave the key out")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise RowError("duplicate_key", f"the key {twice!r} stands twice in one object")
    return value
