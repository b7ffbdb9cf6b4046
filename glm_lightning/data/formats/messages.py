"""OpenAI's messages: a list of turns with role and content."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from glm_lightning.data.formats.base import Format, objects, role_of, text
from glm_lightning.types import Message, Role

_ROLES: Mapping[str, Role] = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "observation": "tool",
}
_TOOLS = ("tools", "functions", "tool_calls", "function_call")


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Messages(Format):
    """Rows with a list of turns. An answer with ``"loss": false`` is context only.

    Args:
        messages: column of the list of turns.
        role: key of a turn's role.
        content: key of a turn's text.
        loss: key of the optional truth value that switches the learning of an answer off.
    """

    messages: str = "messages"
    role: str = "role"
    content: str = "content"
    loss: str = "loss"

    def turns(self, row: Mapping[str, Any], faults: list[str]) -> list[Message]:
        """The turns, in order; see `Format.turns`."""
        _refuse_tools(row, faults, where="")
        return [
            self._message(turn, faults, where=f"{self.messages}[{i}].")
            for i, turn in enumerate(objects(row, self.messages, faults))
        ]

    def _message(self, turn: Mapping[str, Any], faults: list[str], *, where: str) -> Message:
        _refuse_tools(turn, faults, where=where)
        role = role_of(turn.get(self.role), _ROLES, faults, where=f"{where}{self.role}") or "user"
        content = text(turn, self.content, faults, required=role != "system", where=where)
        loss = turn.get(self.loss)
        if loss is not None and not isinstance(loss, bool):
            faults.append(f"{where}{self.loss} must be true or false, not {loss!r}")
        elif loss and role != "assistant":
            faults.append(f"{where}{self.loss} is true on a turn of {role}; only answers are learned")
        return Message(role, content, loss if isinstance(loss, bool) else None)


def _refuse_tools(row: Mapping[str, Any], faults: list[str], *, where: str) -> None:
    for key in _TOOLS:
        if row.get(key):
            faults.append(f"{where}{key}: tool definitions and calls are not read by this format; write them as text")
