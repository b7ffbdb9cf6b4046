"""Preference pairs: a chosen and a rejected answer to one prompt, in the common dialects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, final

from glm_lightning.data.formats.base import RowKind, order_faults, raise_any
from glm_lightning.data.formats.fields import kind, objects, pairs, parts, role_of, text
from glm_lightning.data.judging.kinds import Fault
from glm_lightning.types import Conversation, Message, Origin, Preference, Role

_ROLES: Mapping[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Preferences(RowKind[Preference]):
    """Rows with a chosen and a rejected answer.

    What they answer is a list of turns (ShareGPT's or OpenAI's keys) or a text, behind an optional system text and
    history; the input of an instruction follows it after a newline. An answer is a text, a turn, or a list of turns
    that goes on from the prompt or holds it as well.

    Args:
        prompt: column of the prompt.
        chosen: column of the better answer.
        rejected: column of the worse one.
    """

    holds = Preference

    prompt: str = "prompt"
    chosen: str = "chosen"
    rejected: str = "rejected"

    @classmethod
    def dialects(cls) -> tuple[Self, ...]:
        """The names that prompts have."""
        names = ("prompt", "conversations", "messages", "instruction", "question", "query")
        return tuple(cls(prompt=name) for name in names)

    def fits(self, row: Mapping[str, Any]) -> bool:
        """Prompt and at least one of the answers are there."""
        return self.prompt in row and (self.chosen in row or self.rejected in row)

    def parse(self, row: Mapping[str, Any], origin: Origin) -> Preference:
        """Both conversations in a row; see `RowKind.parse`."""
        faults: list[str] = []
        context = self._context(row, faults)
        sides = [self._side(row, column, context, faults) for column in (self.chosen, self.rejected)]
        if not faults:
            faults += [Fault("order", fault) for side in sides for fault in order_faults(side)]
        if not faults and sides[0][:-1] != sides[1][:-1]:
            faults.append(Fault("format", f"{self.chosen} and {self.rejected} must answer the same turns"))
        if not faults and sides[0] == sides[1]:
            what = f"{self.chosen} and {self.rejected} are the same, so neither is better; remove the row"
            faults.append(Fault("nothing_learned", what))
        raise_any(faults, origin)
        chosen, rejected = (Conversation(tuple(side), origin) for side in sides)
        return Preference(chosen, rejected, origin)

    def _context(self, row: Mapping[str, Any], faults: list[str]) -> list[Message]:
        system = text(row, "system", faults, required=False)
        before = [Message("system", system)] if system else []
        before += pairs(row, "history", faults, learn=False)
        if isinstance(row.get(self.prompt), list):
            turns = objects(row, self.prompt, faults)
            return before + [_turn(turn, faults, where=f"{self.prompt}[{i}].") for i, turn in enumerate(turns)]
        question = text(row, self.prompt, faults)
        extra = text(row, "input", faults, required=False)
        return [*before, Message("user", f"{question}\n{extra}" if extra else question)]

    def _side(self, row: Mapping[str, Any], column: str, context: list[Message], faults: list[str]) -> list[Message]:
        value = row.get(column)
        if isinstance(value, dict):
            return [*context, _turn(value, faults, where=f"{column}.")]
        if not isinstance(value, list):
            return [*context, Message("assistant", text(row, column, faults))]
        wrong = [turn for turn in value if not isinstance(turn, dict)]
        if wrong or not value:
            what = f"a list of {kind(wrong[0])}" if wrong else "an empty list"
            faults.append(Fault("type", f"{column} must be a text, a turn or a list of turns, not {what}"))
            return context
        turns = [_turn(turn, faults, where=f"{column}[{i}].") for i, turn in enumerate(value)]
        return turns if turns[0].role != "assistant" else [*context, *turns]


def _turn(turn: Mapping[str, Any], faults: list[str], *, where: str) -> Message:
    """A turn with ShareGPT's keys or OpenAI's."""
    role_key, content_key = ("from", "value") if "from" in turn else ("role", "content")
    role = role_of(turn.get(role_key), _ROLES, faults, where=f"{where}{role_key}")
    return Message(role, parts(turn, content_key, faults, required=role != "system", where=where))
