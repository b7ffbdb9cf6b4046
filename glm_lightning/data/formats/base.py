"""What a data format is, and the rules that every conversation obeys."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from glm_lightning.files import digest, fingerprint
from glm_lightning.types import Conversation, Message, Origin, Role, UserError

_FOLLOWS: dict[Role | None, tuple[Role, ...]] = {
    None: ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}

_LOOKS_LIKE = {
    "messages": "data=messages",
    "conversations": "data=sharegpt",
    "instruction": "data=alpaca",
    "summary": "data=adgen",
    "response": "data=prompt_response",
}


class Format(ABC):
    """Reads one kind of row. Subclasses are frozen dataclasses; their fields are the yaml's knobs."""

    @abstractmethod
    def turns(self, row: Mapping[str, Any], faults: list[str]) -> list[Message]:
        """The turns of a row. What is wrong with it goes to ``faults``; then the result is not looked at."""

    def parse(self, row: Mapping[str, Any], origin: Origin) -> Conversation:
        """The conversation in a row.

        Raises:
            UserError: everything that is wrong with the row, each with its origin.
        """
        faults: list[str] = []
        messages = self.turns(row, faults)
        if not faults:
            faults = _order_faults(messages)
        if faults:
            raise UserError([f"{origin}: {fault}" for fault in faults])
        return Conversation(tuple(messages), origin)

    @property
    def fingerprint(self) -> str:
        """Changes with the format's code and settings."""
        code = [fingerprint(Path(inspect.getfile(each))) for each in (type(self), Format)]
        return digest(code, {field.name: getattr(self, field.name) for field in fields(self)})  # type: ignore[arg-type]


def text(row: Mapping[str, Any], column: str, faults: list[str], *, required: bool = True, where: str = "") -> str:
    """The text under ``column``: null is empty; nothing else than text is accepted.

    Args:
        row: the row, or an object in it.
        column: the key.
        faults: takes what is wrong.
        required: whether it is a fault if the text is missing or blank.
        where: what to put in front of the key in messages, as ``messages[2].``.
    """
    value = row.get(column)
    if value is None:
        if required:
            faults.append(_missing(row, column, where))
        return ""
    if not isinstance(value, str):
        faults.append(f"{where}{column} must be text, not {_kind(value)}; write it as a string")
        return ""
    if required and not value.strip():
        faults.append(f"{where}{column} is empty: {value!r}; fill it or remove the row")
    if not value.isascii() and not encodable(value):
        faults.append(f"{where}{column} holds half of a surrogate pair, which is no character; remove it")
    return value


def objects(row: Mapping[str, Any], column: str, faults: list[str]) -> list[Mapping[str, Any]]:
    """The list of turns under ``column``: not empty, objects only."""
    value = row.get(column)
    if value is None:
        faults.append(_missing(row, column, ""))
        return []
    if not isinstance(value, list):
        faults.append(f"{column} must be a list of turns, not {_kind(value)}")
        return []
    if not value:
        faults.append(f"{column} is empty: a conversation needs at least a user's turn and an answer; remove the row")
    wrong = [i for i, turn in enumerate(value) if not isinstance(turn, dict)]
    faults += [f"{column}[{i}] must be an object, not {_kind(value[i])}" for i in wrong]
    return [] if wrong else value


def pairs(row: Mapping[str, Any], column: str, faults: list[str], *, learn: bool) -> list[Message]:
    """The turns of a history ``[[question, answer], ...]`` under ``column``; null and missing are empty."""
    value = row.get(column)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in value):
        faults.append(f"{column} must be a list of [question, answer] pairs, not {_kind(value)} {str(value)[:60]!r}")
        return []
    messages = []
    for i, (question, answer) in enumerate(value):
        turns = {"question": question, "answer": answer}
        messages.append(Message("user", text(turns, "question", faults, where=f"{column}[{i}] ")))
        messages.append(Message("assistant", text(turns, "answer", faults, where=f"{column}[{i}] "), learn))
    return messages


def role_of(name: Any, accepted: Mapping[str, Role], faults: list[str], *, where: str) -> Role | None:
    """The role that ``name`` stands for; a fault lists the accepted names."""
    role = accepted.get(name) if isinstance(name, str) else None
    if role is None:
        faults.append(f"{where} {name!r} is no role of this format; accepted are {', '.join(accepted)}")
    return role


def encodable(value: str) -> bool:
    """Whether a text is free of lone surrogates."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _order_faults(messages: Sequence[Message]) -> list[str]:
    """System first and once, user and answers in turn, tool results behind answers, an answer last, one learned."""
    previous: Role | None = None
    for number, message in enumerate(messages, start=1):
        if message.role not in _FOLLOWS[previous]:
            after = f"behind a turn of {previous}" if previous else "at the beginning"
            rule = " or ".join(_FOLLOWS[previous])
            return [f"turn {number} is of {message.role}; {after} there must be {rule}; reorder, join or remove turns"]
        previous = message.role
    if previous != "assistant":
        return [
            f"the last turn is of {previous or 'nobody'}, so there is nothing to learn behind it; end with an answer"
        ]
    if not any(message.learned for message in messages):
        return ["no answer is to be learned: all are switched off; switch one on or remove the row"]
    return []


def _missing(row: Mapping[str, Any], column: str, where: str) -> str:
    if column in row:
        return f"{where}{column} is null; fill it or remove the row"
    found = ", ".join(map(str, row)) or "none"
    looks = next((name for key, name in _LOOKS_LIKE.items() if key in row), None)
    nested = [key for key, value in row.items() if isinstance(value, list) and value and isinstance(value[0], dict)]
    if looks and not where:
        hint = f"it looks like rows of {looks}"
    elif nested and not where:
        hint = f"if {nested[0]} holds the rows, write that list alone into the file"
    else:
        hint = "name the columns under data.format"
    return f"no {where}{column}; the keys are {found}; {hint}"


def _kind(value: Any) -> str:
    names = {
        bool: "a truth value",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
        str: "a text",
    }
    return names.get(type(value), "null")
