"""Masks from the differences between renderings, for conversations that a chat template writes in ways of its own.

How a template writes tool definitions, calls and reasoning cannot be found with placeholders. But what it writes for a
conversation with an answer begins with what it writes as the prompt for that answer, and the rest is what the model
has to generate. Names of control tokens within the row's texts are hidden from the template, so that the only control
tokens in what comes out are its own.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, final

from glm_lightning.types import Conversation, Message, Segment, ToolCall

_HIDDEN = re.compile("(?:\ue0f0|\\\\ue0f0)([0-9]+)(?:\ue0f1|\\\\ue0f1)")
"""What stands for a control token's name: private-use characters, as they are or as JSON may escape them."""


class UnmaskableError(Exception):
    """Why the turns of a conversation cannot be told apart in what the template makes of them."""


class Render(Protocol):
    """The template itself, from a conversation to its text."""

    def __call__(self, conversation: Conversation, /, *, generation: bool, thinking: bool | None = None) -> str:
        """The text; raises `UnmaskableError` if the template refuses the conversation."""
        ...


Prompt = Callable[[Conversation], list[Segment]]


@dataclass(frozen=True, slots=True)
class _Turn:
    """An answer: the prompt in front of it, what is generated with the control token that ends it, what follows."""

    head: str
    said: str
    end: str  # appended: empty where the template has one
    rest: str


@final
class Differences:
    """Renders conversations with tools, calls and reasoning through a chat template.

    Args:
        render: the template.
        controls: names of the control tokens.
        end: the token to put behind an answer that the template leaves open; None if there is none.
    """

    def __init__(self, render: Render, *, controls: Sequence[str], end: str | None) -> None:
        self._render = render
        self._end = end
        self._names = (*sorted(controls, key=len, reverse=True), "\ue0f0", "\ue0f1")
        self._name = re.compile("|".join(map(re.escape, self._names)))
        self._control = re.compile("|".join(map(re.escape, self._names[:-2])) or r"(?!)")

    def samples(self, conversation: Conversation, *, prompt: Prompt) -> list[list[Segment]]:
        """Training view: one sample if every answer looks the same with the turns behind it, else one an answer.

        ``prompt`` makes the generation view with which a sample of one answer begins.

        Raises:
            UnmaskableError: an answer does not begin with its prompt, or a part of the row is left out.
        """
        hidden = self._hidden(conversation)
        messages = hidden.messages
        whole = self._render(hidden, generation=False)
        self._check_whole(hidden, whole)
        turns = {i: self._turn(hidden, i) for i, message in enumerate(messages) if message.role == "assistant"}
        if all(self._continues(whole, turn, last=i == len(messages) - 1) for i, turn in turns.items()):
            return [self._joint(whole, turns, messages)]
        return [
            [*prompt(_before(conversation, i)), *self._answer(turn)] for i, turn in turns.items() if messages[i].learned
        ]

    def prompt(self, conversation: Conversation, *, thinking: bool | None) -> list[Segment]:
        """Generation view. Where answers look the same in the history, they are encoded apart as they are there."""
        hidden = self._hidden(conversation)
        text = self._render(hidden, generation=True, thinking=thinking)
        self._check_whole(hidden, text)
        edges = [0, *self._starts(hidden, text), len(text)]
        return [segment for a, b in itertools.pairwise(edges) for segment in self._split(text[a:b], learn=False)]

    def _starts(self, conversation: Conversation, text: str) -> list[int]:
        """Where the answers in a prompt begin; none if not all are found."""
        answers = [i for i, message in enumerate(conversation.messages) if message.role == "assistant"]
        try:
            turns = [self._turn(conversation, i) for i in answers]
        except UnmaskableError:
            return []
        found = all(self._continues(text, turn, last=False) for turn in turns)
        return [len(turn.head) for turn in turns] if found else []

    def _turn(self, conversation: Conversation, i: int) -> _Turn:
        message = conversation.messages[i]
        head = self._render(_before(conversation, i), generation=True)
        alone = self._render(_before(conversation, i + 1), generation=False)
        if not alone.startswith(head):
            raise UnmaskableError("its generation prompt is not how an answered turn begins")
        said = alone[len(head) :]
        if message.learned:
            _check_said(message, said)
        content = message.content.strip()
        found = list(self._control.finditer(said, 0 if message.tool_calls else said.rfind(content) + len(content)))
        if found:
            # a call may have control tokens of its own
            end = found[-1 if message.tool_calls else 0].end()
            return _Turn(head, said[:end], "", said[end:])
        if self._end is None:
            raise UnmaskableError("no control token ends an answer, and the tokenizer has no end token")
        return _Turn(head, said, self._end, "")

    def _continues(self, whole: str, turn: _Turn, *, last: bool) -> bool:
        """Whether a turn looks in the whole as it does at the end, up to and with the token that ends it."""
        begun = turn.head + turn.said
        if not whole.startswith(begun):
            return False
        return not turn.end or last or self._control.match(whole, len(begun)) is not None

    def _joint(self, whole: str, turns: Mapping[int, _Turn], messages: Sequence[Message]) -> list[Segment]:
        segments: list[Segment] = []
        position = 0
        for i, turn in turns.items():
            learn, start = messages[i].learned, len(turn.head)
            stop = start + len(turn.said)
            if turn.end and (following := self._control.match(whole, stop)):
                stop = following.end()
            segments += self._split(whole[position:start], learn=False)
            segments += self._split(whole[start:stop], learn=learn)
            if turn.end and stop == start + len(turn.said):
                segments.append(Segment(control=turn.end, learn=learn))
            position = stop
        return [*segments, *self._split(whole[position:], learn=False)]

    def _answer(self, turn: _Turn) -> list[Segment]:
        end = [Segment(control=turn.end, learn=True)] if turn.end else []
        return [*self._split(turn.said, learn=True), *end, *self._split(turn.rest, learn=False)]

    def _split(self, text: str, *, learn: bool) -> Iterator[Segment]:
        """Texts and control tokens, the row's own texts put back."""
        for piece in re.split(f"({self._control.pattern})", text):
            if self._control.fullmatch(piece):
                yield Segment(control=piece, learn=learn)
            elif piece:
                yield Segment(_HIDDEN.sub(lambda found: self._names[int(found[1])], piece), learn=learn)

    def _hidden(self, conversation: Conversation) -> Conversation:
        """The conversation without names of control tokens in any of its texts."""
        messages = tuple(
            replace(
                message,
                content=self._mapped(message.content),
                reasoning=self._mapped(message.reasoning),
                tool_calls=tuple(ToolCall(**self._mapped(_fields(call))) for call in message.tool_calls),
            )
            for message in conversation.messages
        )
        return replace(conversation, messages=messages, tools=tuple(self._mapped(tool) for tool in conversation.tools))

    def _mapped(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._name.sub(lambda found: f"\ue0f0{self._names.index(found[0])}\ue0f1", value)
        if isinstance(value, Mapping):
            return {self._mapped(key): self._mapped(each) for key, each in value.items()}
        return [self._mapped(each) for each in value] if isinstance(value, list) else value

    def _check_whole(self, conversation: Conversation, whole: str) -> None:
        """Nothing that the model has to know may be left out without a word."""
        for i, message in enumerate(conversation.messages):
            if message.role in ("user", "tool") and _longest_word(message.content) not in whole:
                raise UnmaskableError(f"turn {i + 1} ({message.role}) is left out")
        for tool in conversation.tools:
            inner = tool.get("function")
            name = (inner if isinstance(inner, Mapping) else tool).get("name")
            if isinstance(name, str) and name not in whole:
                raise UnmaskableError(f"it does not show the tool {name}")


def _before(conversation: Conversation, i: int) -> Conversation:
    return replace(conversation, messages=conversation.messages[:i])


def _check_said(message: Message, said: str) -> None:
    squeezed = _squeezed(said)
    if not (message.content.strip() or message.tool_calls):
        raise UnmaskableError("an answer is empty")
    if _squeezed(message.content) not in squeezed:
        raise UnmaskableError("it removes a part of the answer")
    if _squeezed(message.reasoning or "") not in squeezed:
        raise UnmaskableError("it leaves out the reasoning of an answer that is learned")
    for call in message.tool_calls:
        words = [call.name, *map(_longest_word, filter(_is_text, call.arguments.values()))]
        if any(word not in said for word in words):
            raise UnmaskableError(f"it leaves out the call of {call.name} or a part of it")


def _fields(call: ToolCall) -> dict[str, Any]:
    return {"name": call.name, "arguments": dict(call.arguments)}


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _longest_word(text: str) -> str:
    return max(re.findall(r"[^\W_]+", text), key=len, default="")


def _squeezed(text: str) -> str:
    return "".join(text.split())
