"""OpenAI's messages: a list of turns with role and content, with tools, calls of tools and reasoning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, final

from glm_lightning.data.formats.base import Format
from glm_lightning.data.formats.fields import (
    STAND_IN,
    objects,
    parts,
    role_of,
    switch,
    text,
    turns_of,
    with_answer_turn,
)
from glm_lightning.data.formats.tools import call_of, calls_of, tools_of
from glm_lightning.data.judging.kinds import Fault
from glm_lightning.types import Conversation, Message, Role, ToolCall

_ROLES: Mapping[str, Role] = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
    "developer": "system",
}


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Messages(Format):
    """Rows with a list of turns. An answer with ``"loss": false`` or ``"weight": 0`` is context only.

    Args:
        messages: column of the list of turns.
        role: key of a turn's role.
        content: key of a turn's text.
        loss: key of the optional truth value that switches the learning of an answer off.
        weight: key of the optional number that does the same (0 or 1).
        reasoning: key of the optional thoughts before an answer.
        tools: column of the optional definitions of tools, a list or its JSON text.
    """

    messages: str = "messages"
    role: str = "role"
    content: str = "content"
    loss: str = "loss"
    weight: str = "weight"
    reasoning: str = "reasoning_content"
    tools: str = "tools"

    @classmethod
    def dialects(cls) -> tuple[Self, ...]:
        """The usual column."""
        return (cls(),)

    def fits(self, row: Mapping[str, Any]) -> bool:
        """There are turns with roles, none of which has tools as GLM-4's do."""
        turns = turns_of(row, self.messages)
        if not turns or any(self.role not in turn or turn.get("tools") for turn in turns):
            return False
        return turns[-1][self.role] != "user" or "chosen" not in row

    def conversation(self, row: Mapping[str, Any], faults: list[str]) -> Conversation:
        """The turns, in order; see `Format.conversation`."""
        tools = tools_of(row.get(self.tools) or row.get("functions"), faults, where=self.tools)
        turns = objects(row, self.messages, faults)
        messages = [self._message(turn, faults, where=f"{self.messages}[{i}].") for i, turn in enumerate(turns)]
        _check_results(turns, faults, where=self.messages)
        return Conversation(tuple(messages), tools=tools)

    def answered(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """With an assistant's turn at the end; see `Format.answered`."""
        turn = {self.role: "assistant", self.content: STAND_IN}
        return with_answer_turn(row, self.messages, turn, role=self.role, answers=("assistant",))

    def _message(self, turn: Mapping[str, Any], faults: list[str], *, where: str) -> Message:
        role = role_of(turn.get(self.role), _ROLES, faults, where=f"{where}{self.role}")
        if turn.get("tools"):
            faults.append(Fault("tool_json", f"{where}tools: on a turn they are GLM-4's way: data=glm4_tools"))
        called = turn.get("tool_calls") or turn.get("function_call")
        calls = _calls(turn, role, faults, where=where) if called else ()
        required = role in ("user", "assistant") and not called
        content = parts(turn, self.content, faults, required=required, where=where)
        thought = turn.get(self.reasoning) is not None
        reasoning = text(turn, self.reasoning, faults, required=False, where=where) if thought else None
        learn = switch(turn, self.loss, role, faults, where=where)
        learn = switch(turn, self.weight, role, faults, where=where) if learn is None else learn
        return Message(role, content, learn, reasoning or None, calls)


def _calls(turn: Mapping[str, Any], role: Role, faults: list[str], *, where: str) -> tuple[ToolCall, ...]:
    """OpenAI's calls, and the single one of its older form."""
    if role != "assistant":
        faults.append(Fault("tool_json", f"{where}tool_calls: a turn of {role} cannot call tools; only answers can"))
    calls = calls_of(turn.get("tool_calls"), faults, where=f"{where}tool_calls")
    if not turn.get("function_call"):
        return calls
    call = call_of(turn["function_call"], faults, where=f"{where}function_call")
    return (*calls, call) if call else calls


def _check_results(turns: Sequence[Mapping[str, Any]], faults: list[str], *, where: str) -> None:
    """Results that name their call must name one that was made."""
    made: set[str] = set()
    for i, turn in enumerate(turns):
        calls = turn.get("tool_calls")
        if isinstance(calls, list):
            made |= {str(call.get("id")) for call in calls if isinstance(call, dict)}
        answered = turn.get("tool_call_id")
        if answered is not None and str(answered) not in made:
            rule = "answers no call before it; give the id of one"
            faults.append(Fault("tool_json", f"{where}[{i}].tool_call_id {answered!r} {rule}"))
