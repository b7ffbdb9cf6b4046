"""Conversations to the ids that a model is prompted with."""

from __future__ import annotations

import bisect
import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from glm_lightning.data.truncation import by_rounds, fitted
from glm_lightning.templates import Template
from glm_lightning.tokenizers import Tokenizer
from glm_lightning.types import Conversation, Segment, UserError


@dataclass(frozen=True, slots=True)
class Prompt:
    """The ids up to where an answer begins, and what there was no room for: oldest turns, tokens of the rest."""

    ids: list[int]
    turns_left_out: int = 0
    tokens_cut: int = 0

    @property
    def shortened(self) -> bool:
        """Whether something was left out."""
        return bool(self.turns_left_out or self.tokens_cut)


def prompt_ids(prompts: Sequence[Sequence[Segment]], tokenizer: Tokenizer) -> list[list[int]]:
    """Ids of each prompt: control tokens by name, every text as data. All texts are encoded in one call."""
    return [list(itertools.chain.from_iterable(pieces)) for pieces in _pieces(prompts, tokenizer)]


def shortened(
    conversation: Conversation, *, thinking: bool | None, template: Template, tokenizer: Tokenizer, room: int
) -> Prompt:
    """The prompt of a conversation in at most ``room`` tokens.

    What is too long loses its oldest rounds first; if the last one alone is too long, its texts are cut in the middle,
    as in training (`glm_lightning.data.truncation`).

    Raises:
        UserError: not even the last round's control tokens have room.
    """
    messages = conversation.messages
    kept = by_rounds(messages, before=len(messages))

    @functools.cache
    def rendered(number: int) -> tuple[list[Segment], list[list[int]]]:
        segments = template.prompt(replace(conversation, messages=kept[number]), thinking=thinking)
        return segments, _pieces([segments], tokenizer)[0]

    def fits(number: int) -> bool:
        return sum(map(len, rendered(number)[1])) <= room

    number = bisect.bisect_left(range(len(kept) - 1), True, key=fits)
    segments, pieces = rendered(number)
    whole = sum(map(len, pieces))
    if whole > room:
        pieces = _cut(segments, pieces, room)
    ids = list(itertools.chain.from_iterable(pieces))
    return Prompt(ids, turns_left_out=len(messages) - len(kept[number]), tokens_cut=whole - len(ids))


def _cut(segments: list[Segment], pieces: list[list[int]], room: int) -> list[list[int]]:
    try:
        return fitted([replace(segment, learn=False) for segment in segments], pieces, max_length=room)
    except UserError:
        raise UserError(
            f"max_new_tokens leaves {room} tokens of the model's context to a prompt, and the texts of its last turn "
            "have no room between its control tokens; lower max_new_tokens"
        ) from None


def _pieces(prompts: Sequence[Sequence[Segment]], tokenizer: Tokenizer) -> list[list[list[int]]]:
    """Ids of every segment."""
    texts = iter(tokenizer.encode([s.text for prompt in prompts for s in prompt if s.control is None]))
    return [
        [next(texts) if s.control is None else [tokenizer.control_id(s.control)] for s in prompt] for prompt in prompts
    ]
