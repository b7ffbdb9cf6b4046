"""What a data format is, and the rules that every conversation obeys."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

from glm_lightning.data.judging.kinds import Fault, kind_of
from glm_lightning.files import digest, fingerprint
from glm_lightning.types import Conversation, Item, Message, Origin, Role, UserError

T = TypeVar("T")

_FOLLOWS: dict[Role | None, tuple[Role, ...]] = {
    None: ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}


class RowKind(ABC, Generic[T]):
    """Reads one kind of row. Subclasses are frozen dataclasses, one a file; their fields are the yaml's knobs."""

    holds: ClassVar[type[Item]]
    """What its rows hold."""

    yields: ClassVar[bool] = False
    """Whether another format is taken if both fit equally well."""

    @classmethod
    @abstractmethod
    def dialects(cls) -> tuple[Self, ...]:
        """The settings that are tried when rows are to be recognised."""

    @abstractmethod
    def fits(self, row: Mapping[str, Any]) -> bool:
        """Whether a row is of this shape; whether it is sound, `parse` says."""

    @abstractmethod
    def parse(self, row: Mapping[str, Any], origin: Origin) -> T:
        """What is in a row.

        Raises:
            UserError: everything that is wrong with the row, each with its origin.
        """

    @property
    def name(self) -> str:
        """The name of its file, which yaml calls it by."""
        return type(self).__module__.rpartition(".")[2]

    @property
    def knobs(self) -> dict[str, Any]:
        """Its settings, by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]

    @property
    def fingerprint(self) -> str:
        """Changes with the format's code and settings."""
        return digest(self.name, _code(), self.knobs)


class Format(RowKind[Conversation]):
    """Reads rows that hold a conversation each."""

    holds = Conversation

    @abstractmethod
    def conversation(self, row: Mapping[str, Any], faults: list[str]) -> Conversation:
        """Turns and tools of a row. What is wrong with it goes to ``faults``; then the result is not looked at."""

    @abstractmethod
    def answered(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """The row itself where it has an answer, or cannot be read; else with a stand-in for the one that it lacks."""

    def parse(self, row: Mapping[str, Any], origin: Origin) -> Conversation:
        """The conversation in a row; see `RowKind.parse`."""
        faults: list[str] = []
        conversation = self.conversation(row, faults)
        if not faults:
            faults = order_faults(conversation.messages)
        raise_any(faults, origin)
        return Conversation(conversation.messages, origin, conversation.tools)


@functools.cache
def _code() -> list[str]:
    return [fingerprint(file) for file in sorted(Path(__file__).parent.glob("*.py"))]


def raise_any(faults: Sequence[str], origin: Origin) -> None:
    """Raise `UserError` if there are faults, each with its origin in front."""
    if faults:
        raise UserError([Fault(kind_of(fault, default="format"), f"{origin}: {fault}") for fault in faults])


def order_faults(messages: Sequence[Message]) -> list[str]:
    """System first and once, user and answers in turn, tool results behind answers, an answer last, one learned."""
    previous: Role | None = None
    for number, message in enumerate(messages, start=1):
        if message.role not in _FOLLOWS[previous]:
            after = f"behind a turn of {previous}" if previous else "at the beginning"
            rule = " or ".join(_FOLLOWS[previous])
            what = f"turn {number} is of {message.role}; {after} there must be {rule}; reorder, join or remove turns"
            return [Fault("order", what)]
        previous = message.role
    if previous != "assistant":
        what = f"the last turn is of {previous or 'nobody'}, so there is nothing to learn behind it; end with an answer"
        return [Fault("trailing_turn", what)]
    if not any(message.learned for message in messages):
        what = "no answer is to be learned: all are switched off; switch one on or remove the row"
        return [Fault("nothing_learned", what)]
    return []
