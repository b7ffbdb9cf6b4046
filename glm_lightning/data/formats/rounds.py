"""Rounds: a list of objects with what both sides say, as ms-swift writes ShareGPT."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, final

from glm_lightning.data.formats.base import Format
from glm_lightning.data.formats.fields import lines, objects, text, turns_of, with_answer
from glm_lightning.types import Conversation, Message


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Rounds(Format):
    """Rows with a list of rounds, each with a question and its answer; a text may be a list of lines.

    Args:
        rounds: column of the list.
        question: key of the user's text.
        answer: key of the answer.
        system: column of the optional system text beside the list.
        question_optional: whether a round may have no question, or an empty one: then the answer is written to nothing.
    """

    rounds: str = "conversation"
    question: str = "human"
    answer: str = "assistant"
    system: str = "system"
    question_optional: bool = False

    @classmethod
    def dialects(cls) -> tuple[Self, ...]:
        """The columns of ms-swift, and of deep_training's paragraph."""
        return cls(), cls(rounds="paragraph", question="q", answer="a", question_optional=True)

    def fits(self, row: Mapping[str, Any]) -> bool:
        """There are rounds with answers."""
        rounds = turns_of(row, self.rounds)
        return bool(rounds) and all(self.answer in each for each in rounds)

    def conversation(self, row: Mapping[str, Any], faults: list[str]) -> Conversation:
        """The rounds, in order, behind the system text; see `Format.conversation`."""
        system = text(row, self.system, faults, required=False)
        messages = [Message("system", system)] if system else []
        for i, each in enumerate(objects(row, self.rounds, faults)):
            where = f"{self.rounds}[{i}]."
            question = lines(each, self.question, faults, required=not self.question_optional, where=where)
            messages.append(Message("user", question))
            messages.append(Message("assistant", lines(each, self.answer, faults, where=where)))
        return Conversation(tuple(messages))

    def answered(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """With an answer in the last round; see `Format.answered`."""
        rounds = turns_of(row, self.rounds)
        last = with_answer(rounds[-1], self.answer) if rounds else None
        return row if last is None or last is rounds[-1] else {**row, self.rounds: [*rounds[:-1], last]}
