"""ChatGLM3's official rows: conversations with roles, tools beside them, and turns that are a call with its result."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self, final

from glm_lightning.data.formats.base import Format
from glm_lightning.data.formats.fields import STAND_IN, kind, objects, role_of, switch, text, turns_of, with_answer_turn
from glm_lightning.data.formats.tools import call_of, tools_of
from glm_lightning.data.judging.kinds import Fault
from glm_lightning.types import Conversation, Message, Role, ToolCall

_ROLES: Mapping[str, Role] = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "observation": "tool",
}
_CODE = re.compile(r"```(?:python)?\s*\n?(.*?)\n?```\s*\Z", re.DOTALL)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class ChatGLM3(Format):
    """Rows with a list of turns with role and content, and tools beside it.

    A turn of the role ``tool`` with name, parameters and observation is a call and its result; what the assistant says
    right before it belongs to the call. An answer with ``metadata`` (the tool's name) holds its call as the code
    ``tool_call(argument=value, ...)``, as the model itself writes it.

    Args:
        conversations: column of the list of turns.
        tools: column of the optional definitions of tools.
    """

    conversations: str = "conversations"
    tools: str = "tools"

    @classmethod
    def dialects(cls) -> tuple[Self, ...]:
        """The official columns."""
        return (cls(),)

    def fits(self, row: Mapping[str, Any]) -> bool:
        """There are turns with roles."""
        turns = turns_of(row, self.conversations)
        return bool(turns) and all("role" in turn for turn in turns)

    def conversation(self, row: Mapping[str, Any], faults: list[str]) -> Conversation:
        """The turns, in order; see `Format.conversation`."""
        tools = tools_of(row.get(self.tools), faults, where=self.tools)
        messages: list[Message] = []
        for i, turn in enumerate(objects(row, self.conversations, faults)):
            where = f"{self.conversations}[{i}]."
            role = role_of(turn.get("role"), _ROLES, faults, where=f"{where}role")
            learn = switch(turn, "loss", "assistant" if role == "tool" else role, faults, where=where)
            if role == "tool" and "observation" in turn:
                _add_call_and_result(messages, turn, learn, faults, where=where)
            else:
                required = role in ("user", "assistant")
                content = text(turn, "content", faults, required=required, where=where)
                message = Message(role, content, learn)
                named = turn.get("metadata") if role == "assistant" else None
                messages.append(_with_call(message, named, faults, where=where) if named else message)
        return Conversation(tuple(messages), tools=tools)

    def answered(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """With an assistant's turn at the end; see `Format.answered`."""
        turn = {"role": "assistant", "content": STAND_IN}
        return with_answer_turn(row, self.conversations, turn, role="role", answers=("assistant",))


def _add_call_and_result(
    messages: list[Message], turn: Mapping[str, Any], learn: bool | None, faults: list[str], *, where: str
) -> None:
    call = call_of(dict(turn), faults, where=where.removesuffix("."), arguments="parameters")
    said = Message("assistant", "", learn)
    if messages and messages[-1].role == "assistant" and not messages[-1].tool_calls:
        said = messages.pop()
        said = replace(said, learn=said.learn if learn is None else learn)
    observation = turn["observation"]
    if isinstance(observation, dict | list):
        observation = json.dumps(observation, ensure_ascii=False)
    result = text({"observation": observation}, "observation", faults, required=False, where=where)
    messages.append(replace(said, tool_calls=(call,) if call else ()))
    messages.append(Message("tool", result))


def _with_call(answer: Message, name: Any, faults: list[str], *, where: str) -> Message:
    """The answer with the code at its end read as a call of the tool ``name``."""
    found = _CODE.search(answer.content)
    code = found[1] if found else answer.content
    arguments = _arguments(code.strip())
    if not isinstance(name, str):
        faults.append(Fault("tool_json", f"{where}metadata must be the name of a tool, not {kind(name)}"))
    elif arguments is None:
        rule = "must be tool_call(name=value, ...) with plain values"
        faults.append(Fault("tool_json", f"{where}content {rule}, not {code.strip()[:60]!r}"))
    else:
        before = answer.content[: found.start()].strip() if found else ""
        return replace(answer, content=before, tool_calls=(ToolCall(name, arguments),))
    return answer


def _arguments(code: str) -> dict[str, Any] | None:
    """The arguments of ``tool_call(...)``; None for anything else. Nothing is run."""
    try:
        call = ast.parse(code, mode="eval").body
        if not isinstance(call, ast.Call) or call.args or not isinstance(call.func, ast.Name):
            return None
        if call.func.id != "tool_call" or not all(keyword.arg for keyword in call.keywords):
            return None
        return {str(keyword.arg): _json_value(ast.literal_eval(keyword.value)) for keyword in call.keywords}
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None


def _json_value(value: Any) -> Any:
    """What JSON would make of a literal; raises for those that it has no word for."""
    return json.loads(json.dumps(value, allow_nan=False))
