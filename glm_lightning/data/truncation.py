"""What is left out of a sample that is too long, and in which order. All of it is counted (`Encoded.truncated`).

1. The oldest rounds: a user's turn and all that answers it, with its calls and results. The system turn, the tool
   definitions and the newest rounds stay whole.
2. If the last round alone is too long, the texts around its answers: the longest ones are cut to one common length, in
   their middle, for how a text begins and how it ends says most.
3. If the answers do not fit beside what is left of those texts, `STUB` tokens of each (together at most half of the
   room), the answers' texts too, at their ends.

Control tokens are never cut, and among them is the one that ends an answer: it stays, and is learned.
"""

from __future__ import annotations

import bisect
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from glm_lightning.data.judging.kinds import Fault
from glm_lightning.types import Message, Segment, UserError

STUB = 32
"""Tokens of a text around an answer that are kept before the answer itself is cut."""


WHOLE = sys.maxsize
"""The length of texts that are not cut."""


def by_rounds(messages: Sequence[Message], *, before: int) -> list[tuple[Message, ...]]:
    """The turns, and what stays of them when the oldest rounds are left out one by one, the system turn apart.

    The last of them begins with the last user's turn in front of number ``before`` (step 1 of this module).
    """
    system = tuple(messages[:1]) if messages and messages[0].role == "system" else ()
    starts = [i for i, message in enumerate(messages[:before]) if message.role == "user"]
    return [(*system, *messages[start:]) for start in starts] or [tuple(messages)]


@dataclass(frozen=True, slots=True)
class Lengths:
    """To how many ids the texts of answers, and other texts, are cut."""

    answer: int
    other: int

    def both(self, another: Lengths) -> Lengths:
        """The shorter of each."""
        return Lengths(min(self.answer, another.answer), min(self.other, another.other))


def lengths(segments: Sequence[Segment], pieces: Sequence[list[int]], *, max_length: int) -> Lengths:
    """The largest with which all have ``max_length`` ids together (steps 2 and 3 of this module).

    Raises:
        UserError: there is not even room for one id of each text between the control tokens.
    """
    texts = [(s.learn, len(piece)) for s, piece in zip(segments, pieces, strict=True) if s.control is None]
    answers = [size for learned, size in texts if learned and size]
    others = [size for learned, size in texts if not learned and size]
    room = max_length - (len(pieces) - len(texts))
    if room < len(answers) + len(others):
        what = f"the texts of a single exchange between its {len(pieces) - len(texts)} control tokens; raise it"
        raise UserError([Fault("over_long", f"data.max_length={max_length} leaves no room for {what}")])
    stubs = max(min(sum(min(size, STUB) for size in others), room // 2), len(others))
    answer = _common_length(answers, room=room - min(stubs, room - len(answers)))
    other = _common_length(others, room=room - sum(min(size, answer) for size in answers))
    return Lengths(answer, other)


def fitted(segments: Sequence[Segment], pieces: Sequence[list[int]], *, max_length: int) -> list[list[int]]:
    """The ids of each segment, cut so that all have ``max_length`` ids together; see `lengths`."""
    return cut(segments, pieces, lengths(segments, pieces, max_length=max_length))


def cut(segments: Sequence[Segment], pieces: Sequence[list[int]], to: Lengths) -> list[list[int]]:
    """The ids of each segment, of texts no more than ``to`` says."""
    return [
        piece if segment.control else piece[: to.answer] if segment.learn else _without_middle(piece, to.other)
        for segment, piece in zip(segments, pieces, strict=True)
    ]


def _common_length(sizes: Sequence[int], *, room: int) -> int:
    """The largest length to which texts of these sizes can be cut so that they fit into ``room``."""
    if sum(sizes) <= room:
        return WHOLE

    def exceeds(length: int) -> bool:
        return sum(min(size, length) for size in sizes) > room

    return bisect.bisect_left(range(max(sizes) + 1), True, key=exceeds) - 1


def _without_middle(piece: list[int], length: int) -> list[int]:
    if len(piece) <= length:
        return piece
    tail = length // 2
    return piece[: length - tail] + piece[len(piece) - tail :]
