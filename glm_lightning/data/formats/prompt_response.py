"""Two columns, a prompt and a response, under any names; optionally a history of pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, final

from glm_lightning.data.formats.base import Format
from glm_lightning.data.formats.fields import pairs, text, with_answer
from glm_lightning.types import Conversation, Message

_COLUMNS = (
    ("prompt", "response"),  # THUDM's chats
    ("prompt", "completion"),
    ("query", "response"),
    ("question", "answer"),
    ("content", "summary"),  # AdvertiseGen
    ("input", "output"),
)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class PromptResponse(Format):
    """Rows with a prompt and a response: AdvertiseGen (content, summary), THUDM's chats (prompt, response, history).

    Args:
        prompt: column of the user's text.
        response: column of the answer.
        history: column of the optional earlier [question, answer] pairs.
        system: column of the optional system text.
        learn_history: whether the answers in the history are learned too.
    """

    prompt: str = "prompt"
    response: str = "response"
    history: str = "history"
    system: str = "system"
    learn_history: bool = True

    @classmethod
    def dialects(cls) -> tuple[Self, ...]:
        """The pairs of column names that are common."""
        return tuple(cls(prompt=prompt, response=response) for prompt, response in _COLUMNS)

    def fits(self, row: Mapping[str, Any]) -> bool:
        """Both columns are there, and no instruction that the prompt would be the input of."""
        return self.prompt in row and self.response in row and "instruction" not in row

    def conversation(self, row: Mapping[str, Any], faults: list[str]) -> Conversation:
        """System text, history, prompt, response; see `Format.conversation`."""
        system = text(row, self.system, faults, required=False)
        turns = pairs(row, self.history, faults, learn=self.learn_history)
        turns.append(Message("user", text(row, self.prompt, faults)))
        turns.append(Message("assistant", text(row, self.response, faults)))
        return Conversation((Message("system", system), *turns) if system else tuple(turns))

    def answered(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """With a response; see `Format.answered`."""
        return with_answer(row, self.response)
