"""Fields of a row: taken out with their type checked, every fault with the field's name."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from glm_lightning.data.judging.kinds import Fault
from glm_lightning.data.reading import json_values
from glm_lightning.types import Message, Role

Row = Mapping[str, Any]

_LOOKS_LIKE = {
    "messages": "data=messages",
    "conversations": "data=sharegpt",
    "paragraph": "data=deep_training",
    "instruction": "data=alpaca",
    "summary": "data=adgen",
    "response": "data=prompt_response",
}


STAND_IN = "?"
"""Takes the place of an answer that a row lacks."""

NAME_COLUMNS = "name the columns under data.format"

_MEANT = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant"}
"""Names of roles that other formats have."""


def text(row: Row, column: str, faults: list[str], *, required: bool = True, where: str = "") -> str:
    """The text under ``column``: null is empty; nothing else than text is accepted, and lists of its parts.

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
            faults.append(Fault("missing", _missing(row, column, where)))
        return ""
    if not isinstance(value, str):
        faults.append(Fault("type", f"{where}{column} must be text, not {kind(value)}; write it as a string"))
        return ""
    if required and not value.strip():
        faults.append(Fault("empty", f"{where}{column} is empty: {value!r}; fill it or remove the row"))
    if not value.isascii() and not encodable(value):
        what = "holds half of a surrogate pair, which is no character; remove it"
        faults.append(Fault("surrogate", f"{where}{column} {what}"))
    return value


def parts(row: Row, column: str, faults: list[str], *, required: bool = True, where: str = "") -> str:
    """As `text`, but also OpenAI's list of typed parts ``[{"type": "text", "text": ...}]``, joined as they are."""
    value = row.get(column)
    if not isinstance(value, list):
        return text(row, column, faults, required=required, where=where)
    texts = []
    for i, part in enumerate(value):
        if not isinstance(part, dict) or part.get("type") != "text":
            what = repr(part.get("type")) if isinstance(part, dict) else kind(part)
            rule = f'must be {{"type": "text", "text": ...}}, not {what}; only text is learned'
            faults.append(Fault("type", f"{where}{column}[{i}] {rule}"))
        else:
            texts.append(text(part, "text", faults, required=False, where=f"{where}{column}[{i}]."))
    return text({column: "".join(texts)}, column, faults, required=required, where=where)


def lines(row: Row, column: str, faults: list[str], *, required: bool = True, where: str = "") -> str:
    """As `text`, but also a list of lines, joined by newlines."""
    value = row.get(column)
    if not isinstance(value, list):
        return text(row, column, faults, required=required, where=where)
    rows = [text({"line": line}, "line", faults, required=False, where=f"{where}{column} ") for line in value]
    return text({column: "\n".join(rows)}, column, faults, required=required, where=where)


def objects(row: Row, column: str, faults: list[str]) -> list[Row]:
    """The list of turns under ``column``, or its JSON text (as in CSV): not empty, objects only."""
    value = from_json(row.get(column), column, faults)
    if value is None:
        faults.append(Fault("missing", _missing(row, column, "")))
        return []
    if not isinstance(value, list):
        faults.append(Fault("type", f"{column} must be a list of turns, not {kind(value)}"))
        return []
    if not value:
        what = "a conversation needs at least a user's turn and an answer; remove the row"
        faults.append(Fault("empty", f"{column} is empty: {what}"))
    wrong = [i for i, turn in enumerate(value) if not isinstance(turn, dict)]
    faults += [Fault("type", f"{column}[{i}] must be an object, not {kind(value[i])}") for i in wrong]
    return [] if wrong else value


def turns_of(row: Row, column: str) -> list[Row]:
    """The turns under ``column``, where there is nothing but turns; else an empty list."""
    value = from_json(row.get(column), column, [])
    return value if isinstance(value, list) and all(isinstance(turn, dict) for turn in value) else []


def pairs(row: Row, column: str, faults: list[str], *, learn: bool) -> list[Message]:
    """The turns of a history ``[[question, answer], ...]`` under ``column``; null, missing and "" are empty."""
    value = from_json(row.get(column), column, faults)
    if value is None or value == "":
        return []
    if not isinstance(value, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in value):
        what = f"{kind(value)} {str(value)[:60]!r}"
        faults.append(Fault("type", f"{column} must be a list of [question, answer] pairs, not {what}"))
        return []
    messages = []
    for i, (question, answer) in enumerate(value):
        turns = {"question": question, "answer": answer}
        messages.append(Message("user", text(turns, "question", faults, where=f"{column}[{i}] ")))
        messages.append(Message("assistant", text(turns, "answer", faults, where=f"{column}[{i}] "), learn))
    return messages


def with_answer(row: Row, column: str) -> Row:
    """A row whose answer is the text under ``column``, with `STAND_IN` where that is null or blank."""
    value = row.get(column)
    lacks = value is None or (isinstance(value, str) and not value.strip())
    return {**row, column: STAND_IN} if lacks else row


def with_answer_turn(row: Row, column: str, turn: Row, *, role: str, answers: Collection[str]) -> Row:
    """A row that ends with an answer: with the stand-in ``turn`` behind the others where none of ``answers`` is last.

    An answer that says nothing and calls nothing, as some write what is to be answered, gives way to it.

    Args:
        row: the row.
        column: of the list of turns.
        turn: an answer with `STAND_IN` as its text.
        role: key of a turn's role.
        answers: the roles of answers.
    """
    turns = turns_of(row, column)
    if turns and turns[-1].get(role) in answers:
        if any(value for key, value in turns[-1].items() if key != role):
            return row
        turns = turns[:-1]
    return {**row, column: [*turns, turn]} if turns else row


def role_of(name: Any, accepted: Mapping[str, Role], faults: list[str], *, where: str) -> Role:
    """The role that ``name`` stands for; a fault lists the accepted names."""
    role = accepted.get(name) if isinstance(name, str) else None
    if role is None:
        meant = f"; write {_MEANT[name]}" if isinstance(name, str) and name in _MEANT else ""
        rule = f"is no role of this format; accepted are {', '.join(accepted)}{meant}"
        faults.append(Fault("role", f"{where} {name!r} {rule}"))
    return role or "user"


def switch(turn: Row, key: str, role: Role, faults: list[str], *, where: str) -> bool | None:
    """Whether an answer is learned, where the turn says so: true, false, or as a weight 1 or 0."""
    value = turn.get(key)
    if value is None:
        return None
    if not isinstance(value, bool | int | float) or value not in (0, 1):
        faults.append(Fault("type", f"{where}{key} must be true or false (or 1 or 0), not {value!r}"))
    elif value and role != "assistant":
        faults.append(Fault("format", f"{where}{key} is {value!r} on a turn of {role}; only answers are learned"))
    return bool(value)


def from_json(value: Any, where: str, faults: list[str], *, fault: str = "type") -> Any:
    """A value; of a text that looks like a JSON list or object what it stands for, None if it is none."""
    if not isinstance(value, str) or value.strip()[:1] not in ("[", "{"):
        return value
    stripped = value.strip()
    try:
        decoded, end = json_values.decoder().raw_decode(stripped)
        json_values.check_end(stripped, end)
    except (ValueError, RecursionError) as error:
        what = json_values.reason(error)
        faults.append(Fault(fault, f"{where}: {what}: {stripped[:60]!r}; write it as JSON"))
        return None
    return decoded


def plain_values(value: Any) -> bool:
    """Whether what came from JSON can be written as JSON again: no infinite number, no half of a surrogate pair."""
    try:
        return encodable(json.dumps(value, ensure_ascii=False, allow_nan=False))
    except ValueError:
        return False


def encodable(value: str) -> bool:
    """Whether a text is free of lone surrogates."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def kind(value: Any) -> str:
    """What a value is, in words."""
    names = {
        bool: "a truth value",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
        str: "a text",
    }
    return names.get(type(value), "null" if value is None else f"a {type(value).__name__}")


def _missing(row: Row, column: str, where: str) -> str:
    if column in row:
        return f"{where}{column} is null; fill it or remove the row"
    advice = "name the columns under data.format" if where else repair(row)
    return f"no {where}{column}; the keys are {keys_of(row)}; {advice}"


def keys_of(row: Row) -> str:
    """The keys of a row, for messages."""
    return ", ".join(map(str, row)) or "none"


def repair(row: Row) -> str:
    """What may help where a row has not the fields that are looked for."""
    nested = [key for key, value in row.items() if isinstance(value, list) and value and isinstance(value[0], dict)]
    if looks := next((name for key, name in _LOOKS_LIKE.items() if key in row), None):
        return f"it looks like rows of {looks}"
    if nested:
        return f"if {nested[0]} holds the rows, write that list alone into the file"
    return NAME_COLUMNS
