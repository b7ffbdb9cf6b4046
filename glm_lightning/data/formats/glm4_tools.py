"""GLM-4's official rows: messages whose system turn has the tools, and whose calls are answers in JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, final

from glm_lightning.data.formats.base import Format
from glm_lightning.data.formats.fields import (
    STAND_IN,
    from_json,
    objects,
    role_of,
    switch,
    text,
    turns_of,
    with_answer_turn,
)
from glm_lightning.data.formats.tools import call_of, is_call, tools_of
from glm_lightning.types import Conversation, Message, Role

_ROLES: Mapping[str, Role] = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "observation": "tool",
    "tool": "tool",
}


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Glm4Tools(Format):
    """Rows with a list of turns: tools on the system turn, calls as ``{"name": ..., "arguments": ...}`` in an answer.

    An answer is a call if an observation follows it, or if tools are declared and it is such an object. Such an object
    without tools is a text.

    Args:
        messages: column of the list of turns.
    """

    yields = True

    messages: str = "messages"

    @classmethod
    def dialects(cls) -> tuple[Self, ...]:
        """The official column."""
        return (cls(),)

    def fits(self, row: Mapping[str, Any]) -> bool:
        """There are turns with role and content, and nothing of OpenAI's way to write tools."""
        turns = turns_of(row, self.messages)
        return bool(turns) and not row.get("tools") and all("role" in t and "tool_calls" not in t for t in turns)

    def conversation(self, row: Mapping[str, Any], faults: list[str]) -> Conversation:
        """The turns, in order; see `Format.conversation`."""
        turns = objects(row, self.messages, faults)
        declared = next((turn["tools"] for turn in turns if turn.get("tools")), None)
        tools = tools_of(declared, faults, where=f"{self.messages}[0].tools")
        roles = [
            role_of(turn.get("role"), _ROLES, faults, where=f"{self.messages}[{i}].role")
            for i, turn in enumerate(turns)
        ]
        messages = []
        for i, (turn, role) in enumerate(zip(turns, roles, strict=True)):
            where = f"{self.messages}[{i}]."
            content = text(turn, "content", faults, required=role in ("user", "assistant"), where=where)
            learn = switch(turn, "loss", role, faults, where=where)
            message = Message(role, content, learn)
            if role == "assistant" and tools:
                message = _with_call(message, "tool" in roles[i + 1 : i + 2], faults, where=f"{where}content")
            messages.append(message)
        return Conversation(tuple(messages), tools=tools)

    def answered(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """With an assistant's turn at the end; see `Format.answered`."""
        turn = {"role": "assistant", "content": STAND_IN}
        return with_answer_turn(row, self.messages, turn, role="role", answers=("assistant",))


def _with_call(answer: Message, must_be: bool, faults: list[str], *, where: str) -> Message:
    value = from_json(answer.content, where, faults if must_be else [], fault="tool_json")
    if value is None or not (must_be or is_call(value)):
        return answer
    call = call_of(value, faults, where=where)
    return Message("assistant", "", answer.learn, None, (call,) if call else ())
