"""Rows to ids and labels: many at once, over-long ones shortened without losing an answer's end."""

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

from glm_lightning.data.judging.kinds import Fault
from glm_lightning.data.reading import Problems
from glm_lightning.data.truncation import Lengths, by_rounds, cut, lengths
from glm_lightning.templates import Template
from glm_lightning.tokenizers import Tokenizer
from glm_lightning.types import IGNORE, Conversation, Document, Item, Preference, Sample, Segment, UserError

VERSION = 4
"""Part of the cache's key: to be raised when the same rows would give other ids, labels or columns."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One sample, and how many turns of its conversation lead up to and include its last learned answer.

    ``cut`` are the tokens that were left out because it was too long, ``cut_learned`` those of them that would have
    been learned. Of a pair the chosen sequence stands in front, and ``num_chosen`` is its length; 0 is no pair.
    """

    item: Item
    turns: int
    input_ids: list[int]
    learned: list[bool]
    truncated: bool = False
    cut: int = 0
    cut_learned: int = 0
    num_chosen: int = 0

    def sample(self) -> Sample:
        """With labels in place of the mask."""
        labels = [i if learn else IGNORE for i, learn in zip(self.input_ids, self.learned, strict=True)]
        return Sample(self.input_ids, labels, self.truncated, self.num_chosen)


@dataclass(frozen=True, slots=True)
class _View:
    """A sequence before encoding: what it is rendered from, and its segments."""

    turns: int
    conversation: Conversation  # of which this is the only sequence
    segments: list[Segment]


@dataclass(frozen=True, slots=True)
class _Draft:
    """A sample before encoding: the sequences of a pair, the one of a conversation, or that of a whole document."""

    item: Item
    views: tuple[_View, ...] = ()  # none: a document
    document: Sequence[Segment] = ()

    @property
    def segments(self) -> list[Segment]:
        return [*self.document, *(segment for view in self.views for segment in view.segments)]


Pieces = list[list[int]]
"""Ids of each segment."""


@final
class Encoder:
    """Renders with a template, encodes with a tokenizer, and shortens what is longer than ``max_length`` tokens.

    Of a conversation that is too long the oldest rounds are left out; if the last one alone is too long, its texts are
    cut. `glm_lightning.data.truncation` says in which order. What is cut from one sequence of a pair is cut from the
    other, so that both answer the same. A document that is too long becomes several samples, and loses nothing.
    """

    def __init__(self, *, tokenizer: Tokenizer, template: Template, max_length: int) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._max_length = max_length
        self._known = _Known()

    @property
    def fingerprints(self) -> tuple[str, str, int, int]:
        """What the ids and labels of a row depend on."""
        return self._tokenizer.fingerprint, self._template.fingerprint, self._max_length, VERSION

    @property
    def controls(self) -> Mapping[str, int]:
        """Names and ids of the tokenizer's control tokens."""
        return self._tokenizer.controls

    def encode(self, items: Sequence[Item], problems: Problems | None = None) -> list[Encoded]:
        """The samples of all rows, in order. Texts are encoded in one call, so that all threads work.

        Raises:
            UserError: a row cannot be rendered or shortened. With ``problems`` it goes there instead, if the row has an
                origin, and the row has no samples.
        """
        drafts: list[_Draft] = []
        for item in items:
            try:
                drafts += self._drafts(item)
            except UserError as error:
                _report(error, item, problems)
        ids = self._ids([draft.segments for draft in drafts])
        encoded: list[Encoded] = []
        for draft, pieces in zip(drafts, ids, strict=True):
            try:
                encoded += self._parts(draft, pieces) if draft.document else [self._finished(draft, pieces)]
            except UserError as error:
                _report(error, draft.item, problems)
        return encoded

    def _drafts(self, item: Item) -> list[_Draft]:
        if isinstance(item, Document):
            return [_Draft(item, document=self._template.document(item.text))]
        if isinstance(item, Preference):
            return [_Draft(item, (self._last(item.chosen), self._last(item.rejected)))]
        return [_Draft(item, (view,)) for view in self._views(item)]

    def _views(self, conversation: Conversation) -> list[_View]:
        samples = self._template.render(conversation)
        messages = conversation.messages
        answers = [i for i, message in enumerate(messages) if message.role == "assistant" and message.learned]
        if len(samples) == 1:
            turns = answers[-1] + 1 if answers else len(messages)
            return [_View(turns, conversation, samples[0])]
        return [
            _View(i + 1, _only_last(conversation, i), segments) for i, segments in zip(answers, samples, strict=True)
        ]

    def _last(self, conversation: Conversation) -> _View:
        """The conversation of which the last answer is learned, and nothing else."""
        turns = len(conversation.messages)
        alone = _only_last(conversation, turns - 1)
        return _View(turns, alone, self._template.render(alone)[-1])

    def _ids(self, samples: Sequence[Sequence[Segment]]) -> list[Pieces]:
        """Ids of every segment. A text that occurs often (a system turn, a history) is encoded once."""
        texts = dict.fromkeys(s.text for segments in samples for s in segments if s.control is None)
        ids = self._known.ids(texts, self._tokenizer)
        controls = self._tokenizer.controls
        return [[ids[s.text] if s.control is None else [controls[s.control]] for s in segments] for segments in samples]

    def _finished(self, draft: _Draft, pieces: Pieces) -> Encoded:
        sides: list[tuple[list[Segment], Pieces]] = []
        for view in draft.views:
            sides.append((view.segments, pieces[: len(view.segments)]))
            pieces = pieces[len(view.segments) :]
        whole = [_flat(*side) for side in sides]
        truncated = any(len(ids) > self._max_length for ids, _ in whole)
        kept = [_flat(*side) for side in self._shortened(draft.views)] if truncated else whole
        prompts = {tuple(ids[: learned.index(True)]) for ids, learned in kept} if len(kept) > 1 else ()
        if len(prompts) > 1:
            rule = "the template asks for the chosen and for the rejected answer in different ways"
            raise UserError([Fault("template", f"{rule}; give reasoning to both of them or to neither")])
        input_ids, learned = (list(itertools.chain.from_iterable(each)) for each in zip(*kept, strict=True))
        return Encoded(
            draft.item,
            draft.views[0].turns,
            input_ids,
            learned,
            truncated,
            cut=sum(len(ids) for ids, _ in whole) - len(input_ids),
            cut_learned=sum(sum(mask) for _, mask in whole) - sum(learned),
            num_chosen=len(kept[0][0]) if len(kept) > 1 else 0,
        )

    def _parts(self, draft: _Draft, pieces: Pieces) -> list[Encoded]:
        """A document in as few samples as hold it; each begins as a document does, and the last one ends as one."""
        ids, learned = _flat(draft.document, pieces)
        start = learned.index(True)
        room = self._max_length - start
        if room < 2:
            what = f"no room for a text behind the {start} tokens that one begins with; raise it"
            raise UserError([Fault("over_long", f"data.max_length={self._max_length} leaves {what}")])
        return [
            Encoded(draft.item, 0, ids[:start] + part, [False] * start + [True] * len(part))
            for part in (ids[at : at + room] for at in range(start, len(ids), room))
        ]

    def _shortened(self, views: Sequence[_View]) -> list[tuple[list[Segment], Pieces]]:
        """Fewer rounds; if the fewest possible are still too long, shorter texts. The same for all ``views``."""
        messages = views[0].conversation.messages
        last_learned = max((i for i, message in enumerate(messages) if message.learned), default=len(messages))
        kept = [by_rounds(view.conversation.messages, before=last_learned) for view in views]

        @functools.cache
        def rendered(number: int) -> list[tuple[list[Segment], Pieces]]:
            samples = [
                self._template.render(replace(view.conversation, messages=turns[number]))[-1]
                for view, turns in zip(views, kept, strict=True)
            ]
            return list(zip(samples, self._ids(samples), strict=True))

        def fits(number: int) -> bool:
            return all(sum(map(len, pieces)) <= self._max_length for _, pieces in rendered(number))

        sides = rendered(bisect.bisect_left(range(len(kept[0]) - 1), True, key=fits))
        to = functools.reduce(Lengths.both, (lengths(*side, max_length=self._max_length) for side in sides))
        return [(segments, cut(segments, pieces, to)) for segments, pieces in sides]


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


def digest(item: Item) -> bytes:
    """16 bytes that name the content: roles, texts, tools. Equal for rows that say the same."""
    hasher = hashlib.blake2b(digest_size=16)
    for message in item.said:
        calls = [(call.name, call.arguments) for call in message.tool_calls]
        said = (
            message.content
            if message.reasoning is None and not calls
            else _json(message.content, message.reasoning, calls)
        )
        content = said.encode("utf-8")
        hasher.update(b"%s %d " % (message.role.encode(), len(content)))
        hasher.update(content)
    if item.tools:
        hasher.update(_json(item.tools).encode("utf-8"))
    return hasher.digest()


def _json(*values: Any) -> str:
    return json.dumps(values, ensure_ascii=False)


def _only_last(conversation: Conversation, answer: int) -> Conversation:
    """The conversation up to an answer, of which only that answer is learned."""
    earlier = (replace(m, learn=False) if m.role == "assistant" else m for m in conversation.messages[:answer])
    return replace(conversation, messages=(*earlier, conversation.messages[answer]))


def _flat(segments: Sequence[Segment], pieces: Pieces) -> tuple[list[int], list[bool]]:
    """All ids, and which of them are learned."""
    learned: list[bool] = []
    for segment, piece in zip(segments, pieces, strict=True):
        learned += [segment.learn] * len(piece)
    return list(itertools.chain.from_iterable(pieces)), learned


def _report(error: UserError, item: Item, problems: Problems | None) -> None:
    if problems is None or item.origin is None:
        raise error
    origin = str(item.origin)
    texts = [text if text.startswith(origin) else f"{origin}: {text}" for text in error.problems]
    problems.add(item.origin.path, *texts)
