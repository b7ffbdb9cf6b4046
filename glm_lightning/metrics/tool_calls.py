"""Whether an answer calls the tools that it should."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from glm_lightning.metrics import Statistics, means, percent
from glm_lightning.types import Message, ToolCall


def statistics(predictions: Sequence[Message], references: Sequence[Message]) -> Statistics:
    """Percentage of answers with the calls of their reference, and of those that call the same functions at least.

    Arguments are compared as JSON values: the order of keys does not count, nor does that of several calls; 1 is 1.0
    and is not true. Rows in which neither side calls anything have no say; a call where none should be is wrong.
    """
    rows = list(zip(predictions, references, strict=True))
    has_say = [bool(prediction.tool_calls or reference.tool_calls) for prediction, reference in rows]
    whole = [_calls(prediction) == _calls(reference) for prediction, reference in rows]
    names = [_names(prediction) == _names(reference) for prediction, reference in rows]
    return means(
        {
            "tool_calls": [percent(same) if says else None for same, says in zip(whole, has_say, strict=True)],
            "tool_names": [percent(same) if says else None for same, says in zip(names, has_say, strict=True)],
        }
    )


def fits(references: Sequence[Message]) -> bool:
    """A reference calls tools."""
    return any(reference.tool_calls for reference in references)


def _calls(message: Message) -> Counter[Hashable]:
    return Counter(_call(call) for call in message.tool_calls)


def _call(call: ToolCall) -> Hashable:
    return call.name, _comparable(call.arguments)


def _names(message: Message) -> Counter[str]:
    return Counter(call.name for call in message.tool_calls)


def _comparable(value: Any) -> Hashable:
    """A JSON value as one that is equal to another if both say the same."""
    if isinstance(value, Mapping):
        return "object", frozenset((key, _comparable(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return "list", tuple(_comparable(item) for item in value)
    return isinstance(value, bool), value
