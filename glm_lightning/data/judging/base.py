"""What a rule on rows is, and the rows that it looks at."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from glm_lightning.data.judging.kinds import Kind
from glm_lightning.types import Item, Message

_SEPARATOR = "\n"


class Texts:
    """The texts of some rows as one, so that a rule reads them in one go.

    Args:
        items: one a row.
        system: whether system turns are among them: where texts are searched, and not where they are compared.
    """

    def __init__(self, items: Sequence[Item], *, system: bool) -> None:
        turns = [_SEPARATOR.join([_said(m) for m in each.said if system or m.role != "system"]) for each in items]
        self.whole = _SEPARATOR.join(turns)
        lengths = np.fromiter(map(len, turns), np.int64, len(turns))
        ends = np.cumsum(lengths + len(_SEPARATOR))
        self.starts: npt.NDArray[np.int64] = ends - lengths - len(_SEPARATOR)
        self.stops: npt.NDArray[np.int64] = ends - len(_SEPARATOR)

    @cached_property
    def codes(self) -> npt.NDArray[np.uint32]:
        """Code points of the whole. Shape (characters,)."""
        return np.frombuffer(self.whole.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)

    def row(self, position: int) -> int:
        """Which row the character at ``position`` belongs to."""
        return int(np.searchsorted(self.starts, position, side="right")) - 1

    def around(self, position: int, *, width: int = 20) -> str:
        """The characters about ``position``, for a message."""
        row = self.row(position)
        start = max(int(self.starts[row]), position - width)
        return repr(self.whole[start : min(int(self.stops[row]), position + width)])


class Rule(ABC):
    """Judges rows by their texts. One final class a file; the folder's files are the list of rules."""

    @property
    @abstractmethod
    def kind(self) -> Kind:
        """The kind of fault that this rule finds."""

    @abstractmethod
    def find(self, texts: Texts, *, controls: Mapping[str, int]) -> Iterator[tuple[int, str]]:
        """Number and fault of every row that has one, once each.

        Args:
            texts: the rows.
            controls: names and ids of the tokenizer's control tokens.
        """


def _said(message: Message) -> str:
    """All text of a turn: content, reasoning, and what calls are given."""
    if message.reasoning is None and not message.tool_calls:
        return message.content
    calls = [f"{call.name} {json.dumps(call.arguments, ensure_ascii=False)}" for call in message.tool_calls]
    return _SEPARATOR.join([message.reasoning or "", message.content, *calls])


def first_of_each_row(texts: Texts, positions: npt.NDArray[np.int64]) -> dict[int, tuple[int, int]]:
    """By row: the first of ``positions`` (ascending) in it, and how many there are."""
    rows = np.searchsorted(texts.starts, positions, side="right") - 1
    found, first, counts = np.unique(rows, return_index=True, return_counts=True)
    return {int(r): (int(positions[i]), int(n)) for r, i, n in zip(found, first, counts, strict=True)}
