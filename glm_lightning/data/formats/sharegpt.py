"""ShareGPT: a list of turns with from and value, in the dialects that are about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self, final

from glm_lightning.data.formats.base import Format
from glm_lightning.data.formats.fields import (
    STAND_IN,
    lines,
    objects,
    role_of,
    switch,
    text,
    turns_of,
    with_answer_turn,
)
from glm_lightning.data.formats.tools import calls_of, tools_of
from glm_lightning.data.judging.kinds import Fault
from glm_lightning.types import Conversation, Message, Role, ToolCall

_CALL = "function_call"
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
    _CALL: "assistant",
}


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class ShareGPT(Format):
    """Rows with a list of turns. A text may be a list of lines, as deep_training has it.

    A turn of ``function_call`` is a call of a tool, or a list of calls, in JSON; it belongs to the answer before it.

    Args:
        conversations: column of the list of turns.
        role: key of a turn's speaker.
        content: key of a turn's text.
        system: column of the optional system text beside the list.
        tools: column of the optional definitions of tools; deep_training has them on the system turn.
    """

    conversations: str = "conversations"
    role: str = "from"
    content: str = "value"
    system: str = "system"
    tools: str = "tools"

    @classmethod
    def dialects(cls) -> tuple[Self, ...]:
        """The usual columns."""
        return (cls(),)

    def fits(self, row: Mapping[str, Any]) -> bool:
        """There are turns with a speaker, the last of which is not the user."""
        turns = turns_of(row, self.conversations)
        if not turns or any(self.role not in turn for turn in turns):
            return False
        return turns[-1][self.role] not in ("human", "user") or "chosen" not in row

    def conversation(self, row: Mapping[str, Any], faults: list[str]) -> Conversation:
        """The turns, in order, behind the system text; see `Format.conversation`."""
        turns = objects(row, self.conversations, faults)
        on_turn = turns[0].get(self.tools) if turns else None
        tools = tools_of(row.get(self.tools) or on_turn, faults, where=self.tools)
        system = text(row, self.system, faults, required=False)
        messages = [Message("system", system)] if system else []
        for i, turn in enumerate(turns):
            where = f"{self.conversations}[{i}]."
            if turn.get(self.role) == _CALL:
                calls = self._calls(turn, faults, where=where)
                answer = messages[-1] if messages else None
                follows = answer is not None and answer.role == "assistant" and not answer.tool_calls
                said = messages.pop() if follows else Message("assistant", "")
                messages.append(replace(said, tool_calls=calls))
            else:
                messages.append(self._message(turn, faults, where=where))
        return Conversation(tuple(messages), tools=tools)

    def answered(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """With an answer at the end; see `Format.answered`."""
        turn = {self.role: "gpt", self.content: STAND_IN}
        answers = [name for name, role in _ROLES.items() if role == "assistant"]
        return with_answer_turn(row, self.conversations, turn, role=self.role, answers=answers)

    def _message(self, turn: Mapping[str, Any], faults: list[str], *, where: str) -> Message:
        role = role_of(turn.get(self.role), _ROLES, faults, where=f"{where}{self.role}")
        content = lines(turn, self.content, faults, required=role in ("user", "assistant"), where=where)
        return Message(role, content, switch(turn, "loss", role, faults, where=where))

    def _calls(self, turn: Mapping[str, Any], faults: list[str], *, where: str) -> tuple[ToolCall, ...]:
        value, before = turn.get(self.content), len(faults)
        calls = calls_of(value, faults, where=f"{where}{self.content}")
        if not calls and len(faults) == before:
            faults.append(Fault("tool_json", f"{where}{self.content} holds no call, but {value!r}; remove the turn"))
        return calls
