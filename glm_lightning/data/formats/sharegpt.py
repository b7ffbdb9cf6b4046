"""ShareGPT: a list of turns with from and value, in the dialects that are about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from glm_lightning.data.formats.base import Format, objects, role_of, text
from glm_lightning.types import Message, Role

_ROLES: Mapping[str, Role] = {
    "human": "user",
    "gpt": "assistant",
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "observation": "tool",
    "tool": "tool",
}


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class ShareGPT(Format):
    """Rows with a list of turns.

    Args:
        conversations: column of the list of turns.
        role: key of a turn's speaker.
        content: key of a turn's text.
        system: column of the optional system text beside the list.
    """

    conversations: str = "conversations"
    role: str = "from"
    content: str = "value"
    system: str = "system"

    def turns(self, row: Mapping[str, Any], faults: list[str]) -> list[Message]:
        """The turns, in order, behind the system text; see `Format.turns`."""
        if row.get("tools"):
            faults.append("tools: tool definitions are not read by this format; write them as text of a system turn")
        system = text(row, self.system, faults, required=False)
        turns = [
            self._message(turn, faults, where=f"{self.conversations}[{i}].")
            for i, turn in enumerate(objects(row, self.conversations, faults))
        ]
        return [Message("system", system), *turns] if system else turns

    def _message(self, turn: Mapping[str, Any], faults: list[str], *, where: str) -> Message:
        role = role_of(turn.get(self.role), _ROLES, faults, where=f"{where}{self.role}") or "user"
        return Message(role, text(turn, self.content, faults, required=role != "system", where=where))
