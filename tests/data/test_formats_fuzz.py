"""Rows that nobody meant: every format reads a row or says what is wrong with it, whatever it holds."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from glm_lightning.data.formats.base import RowKind, order_faults
from glm_lightning.data.formats.recognition import every, recognise
from glm_lightning.data.judging.kinds import Fault
from glm_lightning.data.reading import Row
from glm_lightning.types import Conversation, Origin, UserError

ORIGIN = Origin(Path("f.jsonl"), 7)

WORDS = (
    *("user", "assistant", "system", "tool", "observation", "human", "gpt", "function_call", "text", "", "q", "f"),
    *(
        "[]",
        "{}",
        '{"name": "f", "arguments": {}}',
        '[{"name": "f"}]',
        "```python\ntool_call(a=1)\n```",
        "\ud800",
        "[{",
    ),
)
KEYS = (
    *("role", "content", "from", "value", "tools", "tool_calls", "function", "name", "arguments", "parameters", "type"),
    *("observation", "metadata", "function_call", "tool_call_id", "id", "loss", "weight", "reasoning_content", "text"),
    *("history", "system", "input", "functions", "q", "a", "human", "assistant", "chosen", "rejected"),
)
SCALARS = (None, True, False, 0, 1, -1, 0.5, 1e999, 10**30)


def value(rng: random.Random, depth: int) -> Any:
    kind = rng.random()
    if depth == 0 or kind < 0.2:
        return rng.choice(SCALARS)
    if kind < 0.55:
        return rng.choice(WORDS)
    if kind < 0.75:
        return [value(rng, depth - 1) for _ in range(rng.randint(0, 3))]
    return {key: value(rng, depth - 1) for key in rng.sample(KEYS, rng.randint(0, 5))}


def turns(rng: random.Random) -> list[Any]:
    """Mostly a sound conversation of some dialect, with a thing or two put in."""
    role, content = rng.choice((("role", "content"), ("from", "value")))
    user, answer = rng.choice((("user", "assistant"), ("human", "gpt")))
    made: list[dict[str, Any]] = []
    for _ in range(rng.randint(0, 3)):
        both = {"human": "x", "q": "x", "assistant": "y", "a": "y"}
        made += [both | {role: user, content: "x"}, both | {role: answer, content: "x"}]
        if rng.random() < 0.3:
            called, seen = rng.choice((("function_call", "observation"), ("assistant", "tool")))
            call = {role: called, content: rng.choice(WORDS), "metadata": "f", "tool_calls": value(rng, 2)}
            made[-1:-1] = [call, {role: seen, content: "x", "observation": value(rng, 1), "parameters": value(rng, 1)}]
    for each in made:
        if rng.random() < 0.1:
            each.update({key: value(rng, 3) for key in rng.sample(KEYS, 1)})
    return made


def row(rng: random.Random, format: RowKind[Any]) -> dict[str, Any]:
    columns = [each for each in format.knobs.values() if isinstance(each, str)]
    made = {key: value(rng, 3) for key in rng.sample(columns, rng.randint(0, len(columns)))}
    for column in columns:
        if rng.random() < 0.5:
            made[column] = rng.choice((lambda: "x", lambda: turns(rng)))()
    return made | {key: value(rng, 3) for key in rng.sample(KEYS, rng.randint(0, 2))}


def outcome(format: RowKind[Any], made: dict[str, Any]) -> bool:
    """Whether a row was read; it is checked that it was read or refused as it should be."""
    format.fits(made)
    try:
        parsed = format.parse(made, ORIGIN)
    except UserError as error:
        sound = [isinstance(fault, Fault) and fault.startswith("f.jsonl:7: ") for fault in error.problems]
        assert sound
        assert all(sound)
        return False
    if isinstance(parsed, Conversation):
        assert order_faults(parsed.messages) == []
        for message in parsed.messages:
            assert message.content.encode("utf-8") is not None
            assert message.role == "assistant" or not message.tool_calls
    return True


@pytest.mark.parametrize("name", every())
def test_any_row_is_read_or_refused(name: str) -> None:
    rng = random.Random(name)
    dialects = every()[name].dialects()
    results = [outcome(format, row(rng, format)) for format in (rng.choice(dialects) for _ in range(1500))]
    assert any(results)
    assert not all(results)


def test_any_rows_are_recognised_or_refused() -> None:
    rng = random.Random(0)
    dialects = [dialect for each in every().values() for dialect in each.dialects()]
    for _ in range(400):
        rows = [Row(row(rng, rng.choice(dialects)), line, 0.5) for line in range(1, rng.randint(2, 6))]
        try:
            format = recognise(rows, ORIGIN.path)
        except UserError as error:
            assert len(error.problems) == 1  # noqa: PT017
        else:
            assert sum(format.fits(each.value) for each in rows) >= len(rows) / 2
