"""The answer to one request, whole and in pieces, whatever the route."""

from __future__ import annotations

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

from openai.types.completion_usage import CompletionUsage

from glm_lightning.serving.exchange import Counts, Event, Exchange
from glm_lightning.serving.library import Served


class Choice(Protocol):
    """One of the answers as it grows."""

    def add(self, event: Event) -> None:
        """Take what is new."""

    def chunk(self) -> dict[str, Any] | None:
        """What can be told by now and was not; None if that is nothing."""

    def whole(self) -> dict[str, Any]:
        """The finished answer."""


class Answer(ABC):
    """Choices that grow with an exchange's events, as JSON in OpenAI's forms."""

    def __init__(self, exchange: Exchange, choices: Sequence[Choice], served: Served, *, kind: str) -> None:
        self._exchange = exchange
        self._choices = choices
        self._head: dict[str, Any] = {
            "id": f"{kind}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": served.name,
            "system_fingerprint": served.fingerprint,
        }

    async def whole(self) -> str:
        """The body, once all is there."""
        async for events in self._exchange.events():
            self._take(events)
        return self._body([choice.whole() for choice in self._choices], usage=usage(self._exchange.counts))

    async def chunks(self, *, include_usage: bool) -> AsyncIterator[str]:
        """The pieces, as the answer grows; with ``include_usage`` one more, with the counts."""
        nothing = {"usage": None} if include_usage else {}
        if opening := self._opening():
            yield self._piece(opening, **nothing)
        async for events in self._exchange.events():
            self._take(events)
            choices = [self._choices[event.index].chunk() for event in events]
            if told := [choice for choice in choices if choice is not None]:
                yield self._piece(told, **nothing)
        if include_usage:
            yield self._piece([], usage=usage(self._exchange.counts))

    def _take(self, events: Sequence[Event]) -> None:
        for event in events:
            self._choices[event.index].add(event)

    def _opening(self) -> list[dict[str, Any]]:
        """Choices of a first piece that comes before there is any text."""
        return []

    @abstractmethod
    def _body(self, choices: list[dict[str, Any]], **more: Any) -> str:
        """A whole answer."""

    @abstractmethod
    def _piece(self, choices: list[dict[str, Any]], **more: Any) -> str:
        """A part of one."""


def usage(counts: Counts) -> dict[str, Any]:
    """OpenAI's counts of tokens."""
    total = counts.prompt + counts.completion
    return CompletionUsage(
        prompt_tokens=counts.prompt, completion_tokens=counts.completion, total_tokens=total
    ).model_dump(exclude_unset=True)
