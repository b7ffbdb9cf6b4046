"""The first two generations: rounds of question and answer, numbered in the text of the prompt."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from glm_lightning.templates.base import Template, framed, refuse
from glm_lightning.types import Conversation, Message, Segment

Round = tuple[str, str]
"""A question and its answer."""


class Rounds(Template):
    """All earlier rounds are one text with the question, so each answer is a sample of its own.

    There is no system turn, there are no tools and no reasoning: a conversation that has them is refused. A system turn
    without text says nothing and is left out.
    """

    MODEL: ClassVar[str]
    """The generation's name for messages."""

    PREFIX: ClassVar[tuple[str, ...]]
    """The control tokens that stand in front of what is generated, or of a whole text."""

    END: ClassVar[str]
    """The control token that ends an answer, or a text."""

    @abstractmethod
    def asked(self, history: Sequence[Round], question: str) -> list[Segment]:
        """Everything in front of an answer."""

    @property
    def stop_tokens(self) -> tuple[str, ...]:
        """The end token."""
        return (self.END,)

    @property
    def settings(self) -> str:
        """Nothing but the code decides the rendering."""
        return ""

    def render(self, conversation: Conversation) -> list[list[Segment]]:
        """A sample for each learned answer; see `Template.render`."""
        messages = self._checked(conversation)
        return [
            [
                *self.asked(_rounds(messages[: i - 1]), messages[i - 1].content),
                Segment(message.content, learn=True),
                Segment(control=self.END, learn=True),
            ]
            for i, message in enumerate(messages)
            if message.role == "assistant" and message.learned
        ]

    def prompt(self, conversation: Conversation, *, thinking: bool | None = None) -> list[Segment]:
        """The rounds so far and the question; ``thinking`` changes nothing."""
        messages = self._checked(conversation)
        if len(messages) % 2 == 0:
            refuse(conversation, [f"{self.MODEL} answers questions, and the last turn is none; end with a user's turn"])
        segments = self.asked(_rounds(messages[:-1]), messages[-1].content)
        return [replace(segment, learn=False) for segment in segments]

    def document(self, text: str) -> list[Segment]:
        """Between the prefix and the end token; see `Template.document`."""
        return framed(text, prefix=self.PREFIX, end=self.END)

    def thinking(self, answer: Message) -> bool | None:
        """There is no reasoning to switch."""
        return None

    def _checked(self, conversation: Conversation) -> Sequence[Message]:
        """The turns without an empty system turn: questions and answers in turn."""
        messages = [m for m in conversation.messages if m.role != "system" or m.content.strip()]
        refuse(conversation, self._faults(conversation, messages))
        return messages

    def _faults(self, conversation: Conversation, messages: Sequence[Message]) -> list[str]:
        newer = "or take a newer generation (ChatGLM3 and all after it)"
        roles = {message.role for message in messages}
        faults = []
        if "system" in roles:
            faults.append(
                f"{self.MODEL} has no system role; write the text at the beginning of the first question, {newer}"
            )
        if conversation.tools or "tool" in roles or any(message.tool_calls for message in messages):
            faults.append(f"{self.MODEL} knows neither tools nor their results; take them out of the row, {newer}")
        if any(message.reasoning for message in messages):
            faults.append(
                f"{self.MODEL} does not reason before it answers; take the reasoning out of the row, "
                "or take GLM-Z1 or GLM-4.5 and later"
            )
        in_turn = [("user", "assistant")[i % 2] for i in range(len(messages))]
        if not faults and [message.role for message in messages] != in_turn:
            faults.append(f"{self.MODEL} needs questions and answers in turn, a question first; join or remove turns")
        return faults


def _rounds(messages: Sequence[Message]) -> list[Round]:
    return [(q.content, a.content) for q, a in zip(messages[::2], messages[1::2], strict=True)]
