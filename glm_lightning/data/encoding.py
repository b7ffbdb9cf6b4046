"""Conversations to ids and labels: many at once, over-long ones shortened without losing an answer's end."""

from __future__ import annotations

import bisect
import functools
import hashlib
import itertools
import json
from array import array
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

from glm_lightning.data.reading import Problems
from glm_lightning.data.truncation import by_rounds, fitted
from glm_lightning.templates import Template
from glm_lightning.tokenizers import Tokenizer
from glm_lightning.types import IGNORE, Conversation, Sample, Segment, UserError

VERSION = 3
"""Part of the cache's key: to be raised when the same rows would give other ids, labels or columns."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One sample, and how many turns of its conversation lead up to and include its last learned answer.

    ``cut`` are the tokens that were left out because it was too long, ``cut_learned`` those of them that would have
    been learned.
    """

    conversation: Conversation
    turns: int
    input_ids: list[int]
    learned: list[bool]
    truncated: bool
    cut: int = 0
    cut_learned: int = 0

    def sample(self) -> Sample:
        """With labels in place of the mask."""
        labels = [i if learn else IGNORE for i, learn in zip(self.input_ids, self.learned, strict=True)]
        return Sample(self.input_ids, labels, self.truncated)


@dataclass(frozen=True, slots=True)
class _View:
    """A sample before encoding: what it is rendered from, and its segments."""

    source: Conversation  # as the row gave it
    turns: int
    conversation: Conversation  # of which this sample is the only one
    segments: list[Segment]


@final
class Encoder:
    """Renders with a template, encodes with a tokenizer, and shortens what is longer than ``max_length`` tokens.

    Of a conversation that is too long the oldest rounds are left out; if the last one alone is too long, its texts are
    cut. `glm_lightning.data.truncation` says in which order.
    """

    def __init__(self, *, tokenizer: Tokenizer, template: Template, max_length: int) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._max_length = max_length
        self._known = _Known()

    @property
    def fingerprints(self) -> tuple[str, str, int, int]:
        """What the ids and labels of a conversation depend on."""
        return self._tokenizer.fingerprint, self._template.fingerprint, self._max_length, VERSION

    @property
    def controls(self) -> Mapping[str, int]:
        """Names and ids of the tokenizer's control tokens."""
        return self._tokenizer.controls

    def encode(self, conversations: Sequence[Conversation], problems: Problems | None = None) -> list[Encoded]:
        """The samples of all conversations, in order. Texts are encoded in one call, so that all threads work.

        Raises:
            UserError: a conversation cannot be rendered or shortened. With ``problems`` it goes there instead, if the
                conversation has an origin, and the conversation has no samples.
        """
        views: list[_View] = []
        for conversation in conversations:
            try:
                views += self._views(conversation)
            except UserError as error:
                _report(error, conversation, problems)
        ids = self._ids([view.segments for view in views])
        encoded = []
        for view, pieces in zip(views, ids, strict=True):
            try:
                encoded.append(self._finished(view, pieces))
            except UserError as error:
                _report(error, view.source, problems)
        return encoded

    def _views(self, conversation: Conversation) -> list[_View]:
        samples = self._template.render(conversation)
        messages = conversation.messages
        answers = [i for i, message in enumerate(messages) if message.role == "assistant" and message.learned]
        if len(samples) == 1:
            turns = answers[-1] + 1 if answers else len(messages)
            return [_View(conversation, turns, conversation, samples[0])]
        return [
            _View(conversation, i + 1, _only_last(conversation, i), segments)
            for i, segments in zip(answers, samples, strict=True)
        ]

    def _ids(self, samples: Sequence[Sequence[Segment]]) -> list[list[list[int]]]:
        """Ids of every segment. A text that occurs often (a system turn, a history) is encoded once."""
        texts = dict.fromkeys(s.text for segments in samples for s in segments if s.control is None)
        ids = self._known.ids(texts, self._tokenizer)
        controls = self._tokenizer.controls
        return [[ids[s.text] if s.control is None else [controls[s.control]] for s in segments] for segments in samples]

    def _finished(self, view: _View, pieces: list[list[int]]) -> Encoded:
        whole = sum(map(len, pieces))
        truncated = whole > self._max_length
        segments = view.segments
        if truncated:
            whole_learned = sum(len(piece) for segment, piece in zip(segments, pieces, strict=True) if segment.learn)
            segments, pieces = self._shortened(view)
        learned: list[bool] = []
        for segment, piece in zip(segments, pieces, strict=True):
            learned += [segment.learn] * len(piece)
        input_ids = list(itertools.chain.from_iterable(pieces))
        if not truncated:
            return Encoded(view.source, view.turns, input_ids, learned, truncated)
        cut, cut_learned = whole - len(input_ids), whole_learned - sum(learned)
        return Encoded(view.source, view.turns, input_ids, learned, truncated, cut, cut_learned)

    def _shortened(self, view: _View) -> tuple[list[Segment], list[list[int]]]:
        """Fewer rounds; if the fewest possible are still too long, shorter texts."""
        messages = view.conversation.messages
        last_learned = max((i for i, message in enumerate(messages) if message.learned), default=len(messages))
        kept = by_rounds(messages, before=last_learned)

        @functools.cache
        def rendered(number: int) -> tuple[list[Segment], list[list[int]]]:
            segments = self._template.render(replace(view.conversation, messages=kept[number]))[-1]
            return segments, self._ids([segments])[0]

        def fits(number: int) -> bool:
            return sum(map(len, rendered(number)[1])) <= self._max_length

        segments, pieces = rendered(bisect.bisect_left(range(len(kept) - 1), True, key=fits))
        return segments, fitted(segments, pieces, max_length=self._max_length)


@final
class _Known:
    """The ids of texts that were encoded lately, so that what recurs in many rows is encoded once."""

    _MOST = 1 << 22
    """Ids that are kept: 16 MiB."""

    def __init__(self) -> None:
        self._ids: dict[str, array[int]] = {}
        self._size = 0

    def ids(self, texts: Collection[str], tokenizer: Tokenizer) -> dict[str, list[int]]:
        """The ids of each text; those that are not known are encoded in one call."""
        found = {text: self._ids[text].tolist() for text in texts if text in self._ids}
        new = [text for text in texts if text not in found]
        for text, ids in zip(new, tokenizer.encode(new), strict=True):
            found[text] = ids
            self._size += len(ids)
            if self._size > self._MOST:
                self._ids, self._size = {}, len(ids)
            self._ids[text] = array("i", ids)
        return found


def digest(conversation: Conversation) -> bytes:
    """16 bytes that name the content: roles, texts, tools. Equal for conversations that say the same."""
    hasher = hashlib.blake2b(digest_size=16)
    for message in conversation.messages:
        calls = [(call.name, call.arguments) for call in message.tool_calls]
        said = (
            message.content
            if message.reasoning is None and not calls
            else _json(message.content, message.reasoning, calls)
        )
        content = said.encode("utf-8")
        hasher.update(b"%s %d " % (message.role.encode(), len(content)))
        hasher.update(content)
    if conversation.tools:
        hasher.update(_json(conversation.tools).encode("utf-8"))
    return hasher.digest()


def _json(*values: Any) -> str:
    return json.dumps(values, ensure_ascii=False)


def _only_last(conversation: Conversation, answer: int) -> Conversation:
    """The conversation up to an answer, of which only that answer is learned."""
    earlier = (replace(m, learn=False) if m.role == "assistant" else m for m in conversation.messages[:answer])
    return replace(conversation, messages=(*earlier, conversation.messages[answer]))


def _report(error: UserError, conversation: Conversation, problems: Problems | None) -> None:
    if problems is None or conversation.origin is None:
        raise error
    origin = str(conversation.origin)
    texts = [text if text.startswith(origin) else f"{origin}: {text}" for text in error.problems]
    problems.add(conversation.origin.path, *texts)
