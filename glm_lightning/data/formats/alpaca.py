"""Alpaca: instruction, input, output, with optional history and system text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, final

from glm_lightning.data.formats.base import Format
from glm_lightning.data.formats.fields import pairs, text, with_answer
from glm_lightning.types import Conversation, Message


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Alpaca(Format):
    """Rows with an instruction and an output. The input, if any, follows the instruction after a newline.

    Args:
        instruction: column of the instruction.
        input: column of the optional input.
        output: column of the answer.
        history: column of the optional earlier [question, answer] pairs.
        system: column of the optional system text.
        learn_history: whether the answers in the history are learned too.
    """

    instruction: str = "instruction"
    input: str = "input"
    output: str = "output"
    history: str = "history"
    system: str = "system"
    learn_history: bool = True

    @classmethod
    def dialects(cls) -> tuple[Self, ...]:
        """Alpaca's own columns, and Dolly's."""
        return cls(), cls(input="context", output="response")

    def fits(self, row: Mapping[str, Any]) -> bool:
        """Instruction and output are there."""
        return self.instruction in row and self.output in row

    def conversation(self, row: Mapping[str, Any], faults: list[str]) -> Conversation:
        """System text, history, instruction with input, output; see `Format.conversation`."""
        system = text(row, self.system, faults, required=False)
        history = pairs(row, self.history, faults, learn=self.learn_history)
        instruction = text(row, self.instruction, faults)
        extra = text(row, self.input, faults, required=False)
        question = f"{instruction}\n{extra}" if extra else instruction
        turns = [*history, Message("user", question), Message("assistant", text(row, self.output, faults))]
        return Conversation((Message("system", system), *turns) if system else tuple(turns))

    def answered(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """With an output; see `Format.answered`."""
        return with_answer(row, self.output)
