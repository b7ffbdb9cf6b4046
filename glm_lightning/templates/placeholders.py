"""Masks from placeholders, for conversations that are texts only.

A chat template is a program from messages to one string; it does not say which characters are whose. It is run here on
placeholders instead of contents. Where the placeholders come out, the contents go; everything else is the template's
own text, and only there are control tokens looked for. So no content can become a control token, and the masks do not
depend on guessing. The real rendering is compared with the pieces put together, for every conversation.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import final

from glm_lightning.templates.differences import Render, UnmaskableError
from glm_lightning.types import Conversation, Message, Segment

_Spans = dict[int, tuple[int, int]]
"""What each answer has to generate, by number of the message: first character and one behind the last."""


@dataclass(frozen=True, slots=True)
class _Skeleton:
    """A rendering with placeholders, and where they stand in it (by number of the message)."""

    text: str
    places: dict[int, tuple[int, int]]

    def join(self, contents: Sequence[str]) -> str:
        """The rendering with ``contents`` in place of the placeholders."""
        out, position = [], 0
        for message, (start, end) in self.places.items():
            out += [self.text[position:start], contents[message]]
            position = end
        return "".join([*out, self.text[position:]])


@dataclass(frozen=True, slots=True)
class _Item:
    """A piece of a plan: a message's content, a control token, or text of the template."""

    text: str = ""
    control: str | None = None
    message: int | None = None  # whose content stands here
    answer: int | None = None  # the answer that must generate this
    cut: bool = False  # generation begins here: never encoded together with what is before it


@final
class Placeholders:
    """Renders conversations of texts through a chat template.

    Args:
        render: the template.
        controls: names of the control tokens.
        end: the token to put behind an answer that the template leaves open; None if there is none.
        verbatim: whether contents are known to come out as they are, see `copies_contents`; else that is looked at for
            every conversation.
    """

    def __init__(self, render: Render, *, controls: Sequence[str], end: str | None, verbatim: bool = False) -> None:
        self._render = render
        self._verbatim = verbatim
        self._eos = end
        self._control = re.compile("|".join(map(re.escape, sorted(controls, key=len, reverse=True))) or r"(?!)")
        self._plans: dict[tuple[object, ...], tuple[_Skeleton, list[_Item]] | UnmaskableError] = {}

    def samples(self, messages: Sequence[Message]) -> list[list[Segment]]:
        """Training view: one sample if turns look the same with and without a following one, else one an answer.

        Raises:
            UnmaskableError: it cannot be told which part of the text is whose.
        """
        try:
            return [self._joint(messages)]
        except UnmaskableError:
            answers = [i for i, message in enumerate(messages) if message.role == "assistant" and message.learned]
        return [self.single(messages[: i + 1]) for i in answers]

    def prompt(self, messages: Sequence[Message]) -> list[Segment]:
        """Generation view; raises `UnmaskableError`."""
        try:
            skeleton, items = self._plan(messages, generation=True, answers=True)
        except UnmaskableError:
            skeleton, items = self._plan(messages, generation=True, answers=False)
        contents = self._contents(messages, skeleton, generation=True)
        return [Segment(s.text, s.control) for s in _merged(items, messages, contents)]

    def single(self, messages: Sequence[Message]) -> list[Segment]:
        """The sample of the last answer alone: its generation prompt, and what the template makes of the answer."""
        answer = messages[-1].content
        skeleton = self._skeleton(messages, generation=False)
        if len(messages) - 1 not in skeleton.places:
            raise UnmaskableError("it leaves out the last answer")
        start, end = skeleton.places[len(messages) - 1]
        lead = skeleton.text[len(self._head(messages[:-1], skeleton, before=start)) : start]
        trail, control, rest = self._ending(skeleton.text[end:])
        head, whole = self._text(messages[:-1], generation=True), self._text(messages, generation=False)
        if not (whole.startswith(head) and whole.endswith(skeleton.text[end:])):
            raise UnmaskableError("what it makes of an answer does not begin with its generation prompt")
        middle = whole[len(head) : len(whole) - (len(skeleton.text) - end)]
        if _squeezed(answer) not in _squeezed(middle):
            raise UnmaskableError("it removes a part of the answer")
        # A lead that the content replaces (a reasoning part of its own) is text of the answer.
        lead = lead if middle.startswith(lead) else ""
        learned = [*self._split(lead), Segment(middle[len(lead) :] + trail), Segment(control=control)]
        return [
            *self.prompt(messages[:-1]),
            *_joined([replace(segment, learn=True) for segment in learned]),
            *self._split(rest),
        ]

    def _joint(self, messages: Sequence[Message]) -> list[Segment]:
        """One sample for all answers."""
        skeleton, items = self._plan(messages, generation=False, answers=True)
        contents = self._contents(messages, skeleton, generation=False)
        for message, content in zip(messages, contents, strict=True):
            if message.role == "assistant" and message.learned and content.strip() != message.content.strip():
                raise UnmaskableError("it rewrites answers")
        return list(_merged(items, messages, contents))

    def _plan(self, messages: Sequence[Message], *, generation: bool, answers: bool) -> tuple[_Skeleton, list[_Item]]:
        """Skeleton and pieces of all conversations with these roles (and these turns empty)."""
        key = (generation, answers, *((message.role, not message.content) for message in messages))
        if key not in self._plans:
            try:
                skeleton = self._skeleton(messages, generation=generation)
                spans = self._spans(messages, skeleton, generation=generation) if answers else {}
                items = list(self._items(skeleton, spans))
                if (last := len(messages) - 1) in spans and not generation:
                    items += self._missing_end(skeleton.text[skeleton.places[last][1] :], last)
                self._plans[key] = (skeleton, items)
            except UnmaskableError as reason:
                self._plans[key] = reason
        plan = self._plans[key]
        if isinstance(plan, UnmaskableError):
            raise plan
        return plan

    def _missing_end(self, behind: str, last: int) -> list[_Item]:
        """The end token of a last answer that the template leaves open."""
        if self._control.search(behind):
            return []
        return [_Item(control=self._ending(behind)[1], answer=last)]

    def _skeleton(self, messages: Sequence[Message], *, generation: bool) -> _Skeleton:
        text = self._text(_placeholders(messages), generation=generation)
        places = {}
        for i, message in enumerate(messages):
            if not message.content:
                continue
            mark = _mark(i)
            if text.count(mark) != 1:
                raise UnmaskableError(f"turn {i + 1} ({message.role}) comes out {text.count(mark)} times, not once")
            places[i] = (text.index(mark), text.index(mark) + len(mark))
        return _Skeleton(text, dict(sorted(places.items(), key=lambda place: place[1])))

    def _spans(self, messages: Sequence[Message], skeleton: _Skeleton, *, generation: bool) -> _Spans:
        """What each answer has to generate: from its generation prompt to behind the token that ends it."""
        spans = {}
        for i, message in enumerate(messages):
            if message.role != "assistant":
                continue
            if i not in skeleton.places:
                raise UnmaskableError(f"turn {i + 1} (assistant) is empty")
            start, end = skeleton.places[i]
            head = self._head(messages[:i], skeleton, before=start)
            following = min((s for s, _ in skeleton.places.values() if s >= end), default=len(skeleton.text))
            found = self._control.search(skeleton.text, end, following)
            if found is None and (generation or following < len(skeleton.text)):
                raise UnmaskableError("no control token ends an answer")
            self._check_stable(messages[: i + 1], skeleton.text[: found.end() if found else None], end)
            spans[i] = (len(head), found.end() if found else following)
        return spans

    def _head(self, messages: Sequence[Message], skeleton: _Skeleton, *, before: int) -> str:
        head = self._text(_placeholders(messages), generation=True)
        if not (skeleton.text.startswith(head) and len(head) <= before):
            raise UnmaskableError("its generation prompt is not how an answered turn begins")
        return head

    def _check_stable(self, messages: Sequence[Message], begun: str, end: int) -> None:
        """The answer that ends the conversation must look as it does with a turn behind it.

        A template may leave the last answer open where the next role token closes the others.
        """
        alone = self._text(_placeholders(messages), generation=False)
        if not (alone.startswith(begun) or (begun.startswith(alone) and not self._control.search(alone, end))):
            raise UnmaskableError("answers look different once another turn follows")

    def _ending(self, text: str) -> tuple[str, str, str]:
        """Text before the control token that ends an answer, that token, and text behind it."""
        if found := self._control.search(text):
            return text[: found.start()], found.group(), text[found.end() :]
        if self._eos is None:
            raise UnmaskableError("no control token ends an answer, and the tokenizer has no end token")
        return text, str(self._eos), ""

    def _items(self, skeleton: _Skeleton, spans: _Spans) -> Iterator[_Item]:
        """The pieces of a skeleton, cut where contents, spans and control tokens begin and end."""
        text, owners = skeleton.text, {place[0]: message for message, place in skeleton.places.items()}
        edges = {0, len(text)}.union(*skeleton.places.values(), *spans.values())
        edges.update(*(found.span() for found in self._control.finditer(text)))
        starts = {start for start, _ in spans.values()}
        bounds = sorted(edges)
        for start, end in itertools.pairwise(bounds):
            answer = next((i for i, (first, last) in spans.items() if first <= start < last), None)
            piece, cut = text[start:end], start in starts
            if start in owners:
                yield _Item(message=owners[start], answer=answer, cut=cut)
            elif self._control.fullmatch(piece):
                yield _Item(control=piece, answer=answer)
            else:
                yield _Item(text=piece, answer=answer, cut=cut)

    def _contents(self, messages: Sequence[Message], skeleton: _Skeleton, *, generation: bool) -> list[str]:
        """What the template makes of each content: the content, for most; stripped or shortened, for some."""
        if self._verbatim:
            return [message.content for message in messages]
        real = self._text(messages, generation=generation)
        contents = [message.content for message in messages]
        if skeleton.join(contents) == real:
            return contents
        contents = [self._rewritten(i, messages, skeleton, generation=generation) for i in range(len(messages))]
        if skeleton.join(contents) != real:
            raise UnmaskableError("what it writes for one turn depends on the text of another")
        return contents

    def _rewritten(self, i: int, messages: Sequence[Message], skeleton: _Skeleton, *, generation: bool) -> str:
        if i not in skeleton.places:
            return messages[i].content
        start, end = skeleton.places[i]
        before, behind = skeleton.text[:start], skeleton.text[end:]
        mixed = [*_placeholders(messages)]
        mixed[i] = messages[i]
        text = self._text(mixed, generation=generation)
        if len(text) < len(before) + len(behind) or not (text.startswith(before) and text.endswith(behind)):
            raise UnmaskableError(f"what it writes around turn {i + 1} ({messages[i].role}) depends on its text")
        return text[start : len(text) - len(behind)]

    def _text(self, messages: Sequence[Message], *, generation: bool) -> str:
        return self._render(Conversation(tuple(messages)), generation=generation)

    def _split(self, text: str) -> list[Segment]:
        """The template's own text as text and control tokens."""
        return [
            Segment(control=piece) if self._control.fullmatch(piece) else Segment(piece)
            for piece in re.split(f"({self._control.pattern})", text)
            if piece
        ]


def _mark(i: int) -> str:
    # private-use characters: no template looks for them
    return f"\ue0f0{i}\ue0f1"


def _placeholders(messages: Sequence[Message]) -> list[Message]:
    return [replace(message, content=_mark(i)) if message.content else message for i, message in enumerate(messages)]


def _merged(items: Sequence[_Item], messages: Sequence[Message], contents: Sequence[str]) -> Iterator[Segment]:
    """Segments of a plan; neighbouring texts of one kind become one, so that they are encoded as the template's."""
    text, learn = "", False
    for item in items:
        learned = messages[item.answer].learned if item.answer is not None else False
        if item.control is not None or item.cut:
            if text:
                yield Segment(text, learn=learn)
            text = ""
        if item.control is not None:
            yield Segment(control=item.control, learn=learned)
            continue
        if item.message is not None:
            learned = messages[item.message].learned
        if text and learned != learn:
            yield Segment(text, learn=learn)
            text = ""
        text += contents[item.message] if item.message is not None else item.text
        learn = learned
    if text:
        yield Segment(text, learn=learn)


def _joined(segments: Sequence[Segment]) -> Iterator[Segment]:
    """Neighbouring texts as one segment."""
    text = ""
    for segment in segments:
        if segment.control is None:
            text += segment.text
            continue
        if text:
            yield Segment(text, learn=segment.learn)
        text = ""
        yield segment


def _squeezed(text: str) -> str:
    return "".join(text.split())
