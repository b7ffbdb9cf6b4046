"""The generations whose turns begin with a role token: what they share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import ClassVar, NamedTuple

from glm_lightning.templates.base import Template, Tools, framed, refuse, require
from glm_lightning.templates.reasoning import extracted
from glm_lightning.tokenizers import Tokenizer
from glm_lightning.types import Conversation, Message, Role, Segment

ROLE_TOKENS: dict[Role, str] = {
    "system": "<|system|>",
    "user": "<|user|>",
    "assistant": "<|assistant|>",
    "tool": "<|observation|>",
}


class Answer(NamedTuple):
    """What stands behind an `<|assistant|>`: what the generation prompt has already, and what is generated."""

    lead: list[Segment]
    generated: list[Segment]


class Dialogue(Template):
    """Turns begin with a role token, and the role token of the turn that follows ends an answer.

    So that token is learned, and behind a last answer the end token is appended: `<|observation|>` where the answer
    calls tools. A learned answer followed by another (a call on its own) ends with `<|assistant|>`.
    """

    MODEL: ClassVar[str]
    """The generation's name for messages."""

    PREFIX: ClassVar[tuple[str, ...]] = ("[gMASK]", "<sop>")
    STOPS: ClassVar[tuple[str, ...]] = ("<|endoftext|>", "<|user|>", "<|observation|>")

    END: ClassVar[str] = "<|user|>"
    """Ends a last answer that calls no tool."""

    HOISTS: ClassVar[bool] = False
    """Whether system turns stand in front of all others."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        controls = (*self.PREFIX, *ROLE_TOKENS.values(), *self.STOPS)
        require(tokenizer, controls, template=self.name, model=self.MODEL)
        self.controls = tokenizer.controls

    @abstractmethod
    def prepared(self, conversation: Conversation) -> Conversation:
        """The conversation as the turns below are made from it."""

    @abstractmethod
    def definitions(self, tools: Tools) -> list[Segment]:
        """The turn that shows tools, if there are any."""

    @abstractmethod
    def turn(self, message: Message, *, after: Message | None, thinking: bool | None) -> list[Segment]:
        """A turn that is no answer, with its role token."""

    @abstractmethod
    def answer(self, message: Message, *, shown: bool) -> Answer:
        """An answer; ``shown`` is false where it stands so far back that its reasoning is left out."""

    @abstractmethod
    def lead(self, *, thinking: bool | None) -> list[Segment]:
        """What a generation prompt has behind `<|assistant|>`."""

    @abstractmethod
    def first_shown(self, messages: Sequence[Message]) -> int:
        """Number of the first turn whose reasoning is shown."""

    @abstractmethod
    def forgets(self, messages: Sequence[Message]) -> bool:
        """Whether an answer looks different once the turns behind it follow."""

    @abstractmethod
    def faults(self, conversation: Conversation) -> list[str]:
        """What cannot be expressed."""

    @property
    def stop_tokens(self) -> tuple[str, ...]:
        """The official end ids of generation."""
        return self.STOPS

    @property
    def settings(self) -> str:
        """Nothing but the code decides the rendering."""
        return ""

    def render(self, conversation: Conversation) -> list[list[Segment]]:
        """One sample for all answers where they look the same in the middle as at the end; see `Template.render`."""
        refuse(conversation, self.faults(conversation))
        conversation = self.prepared(conversation)
        messages = conversation.messages
        learned = [i for i, message in enumerate(messages) if message.role == "assistant" and message.learned]
        if not (self.forgets(messages) or (self.HOISTS and _late_system(messages))):
            return [self._sample(conversation, learned)]
        return [self._sample(replace(conversation, messages=messages[: i + 1]), [i]) for i in learned]

    def prompt(self, conversation: Conversation, *, thinking: bool | None = None) -> list[Segment]:
        """The turns so far, `<|assistant|>`, and what a generation has behind it; see `Template.prompt`."""
        faults = self.faults(conversation)
        if conversation.messages[-1].role == "assistant":
            faults.append("the last turn is an answer already; end with a user's turn or a tool's result")
        refuse(conversation, faults)
        turns = self._turns(self.prepared(conversation), thinking=thinking, learned=())
        return [*turns, Segment(control=ROLE_TOKENS["assistant"]), *self.lead(thinking=thinking)]

    def document(self, text: str) -> list[Segment]:
        """Behind the prefix, up to the first of the official end tokens, which ends texts; see `Template.document`."""
        return framed(text, prefix=self.PREFIX, end=self.STOPS[0])

    def _sample(self, conversation: Conversation, learned: Collection[int]) -> list[Segment]:
        segments = self._turns(conversation, thinking=None, learned=learned)
        for last in conversation.messages[-1:]:
            if last.role == "assistant":
                end = ROLE_TOKENS["tool"] if last.tool_calls else self.END
                segments.append(Segment(control=end, learn=len(conversation.messages) - 1 in learned))
        return segments

    def _turns(self, conversation: Conversation, *, thinking: bool | None, learned: Collection[int]) -> list[Segment]:
        """All turns; those answers are learned whose numbers are in ``learned``."""
        messages = conversation.messages
        segments = [Segment(control=name) for name in self.PREFIX]
        if conversation.tools:
            segments += self.definitions(conversation.tools)
        order = range(len(messages))
        first, after = self.first_shown(messages), None
        for i in sorted(order, key=lambda i: messages[i].role != "system") if self.HOISTS else order:
            message = messages[i]
            if message.role == "assistant":
                turn = _spoken(self.answer(message, shown=i >= first), learn=i in learned)
            else:
                turn = self.turn(message, after=None if after is None else messages[after], thinking=thinking)
            if after in learned and self._ends(turn[0].control):
                turn[0] = Segment(control=turn[0].control, learn=True)
            segments += turn
            after = i
        return segments

    def _ends(self, control: str | None) -> bool:
        return control in self.STOPS or control == ROLE_TOKENS["assistant"]


class Plain(Dialogue):
    """A generation that does not reason: its history looks as it was generated."""

    @abstractmethod
    def tool_faults(self, conversation: Conversation) -> list[str]:
        """What cannot be expressed of tools and calls."""

    def lead(self, *, thinking: bool | None) -> list[Segment]:
        """Nothing."""
        return []

    def first_shown(self, messages: Sequence[Message]) -> int:
        """Nothing is left out."""
        return 0

    def forgets(self, messages: Sequence[Message]) -> bool:
        """Never."""
        return False

    def faults(self, conversation: Conversation) -> list[str]:
        """Reasoning, and what is wrong with the tools."""
        faults = self.tool_faults(conversation)
        if any(message.reasoning for message in conversation.messages):
            faults.append(
                f"{self.MODEL} does not reason before it answers; take the reasoning out of the row, "
                "or take GLM-Z1 or GLM-4.5 and later"
            )
        return faults

    def thinking(self, answer: Message) -> bool | None:
        """There is no reasoning to switch."""
        return None


class Reasoning(Dialogue):
    """A generation that reasons before it answers; the history leaves the reasoning out.

    An answer's content that begins with `<think>...</think>` has its reasoning there, if the row has none beside it.
    """

    def prepared(self, conversation: Conversation) -> Conversation:
        """With all reasoning in its place."""
        return replace(conversation, messages=tuple(map(extracted, conversation.messages)))


class Recent(Reasoning):
    """Reasoning is shown behind the last question only, and any definition of a tool is shown as it is."""

    def first_shown(self, messages: Sequence[Message]) -> int:
        """Behind the last question."""
        return 1 + max((i for i, message in enumerate(messages) if message.role == "user"), default=-1)

    def forgets(self, messages: Sequence[Message]) -> bool:
        """Where an answer in front of the last question has reasoning."""
        return any(message.reasoning for message in messages[: self.first_shown(messages)])

    def faults(self, conversation: Conversation) -> list[str]:
        """Nothing."""
        return []


def control_or_text(name: str, controls: Iterable[str]) -> Segment:
    """A token of the format that is a control token in some releases and text that has an id of its own in others."""
    return Segment(control=name) if name in controls else Segment(name)


def _spoken(answer: Answer, *, learn: bool) -> list[Segment]:
    generated = [Segment(each.text, each.control, True) for each in answer.generated] if learn else answer.generated
    return [Segment(control=ROLE_TOKENS["assistant"]), *answer.lead, *generated]


def _late_system(messages: Sequence[Message]) -> bool:
    roles = [message.role for message in messages]
    return "assistant" in roles and "system" in roles[roles.index("assistant") :]
