"""The answers to one request on their way from the engine's thread to the server's event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Literal, final

from glm_lightning.inference.generation import Pieces
from glm_lightning.inference.rows import Row, Token

Reason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Event:
    """What is new of one of the answers: text, tokens, and at its end why it ends."""

    index: int
    text: str = ""
    tokens: tuple[Token, ...] = ()
    reason: Reason | None = None


@dataclass(slots=True)
class Counts:
    """Tokens of a request, and the seconds that it has taken: to its first token (None if there was none), and all."""

    prompt: int
    completion: int = 0
    first_seconds: float | None = None
    seconds: float = 0.0


class GenerationError(Exception):
    """An answer could not be gone on with."""


@final
class StopStrings:
    """Cuts a text that comes in pieces in front of the first of some strings."""

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = strings
        self._held = ""

    def add(self, piece: str) -> tuple[str, bool]:
        """What can be shown with one more piece, and whether a string was found: then this was the last."""
        text = self._held + piece
        starts = [start for string in self._strings if (start := text.find(string)) >= 0]
        if starts:
            self._held = ""
            return text[: min(starts)], True
        held = max((_overlap(text, string) for string in self._strings), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held], False

    def rest(self) -> str:
        """What was held back, as it might have become one of the strings."""
        return self._held


def _overlap(text: str, string: str) -> int:
    """Length of the longest beginning of ``string`` that ``text`` ends with."""
    sizes = range(min(len(string) - 1, len(text)), 0, -1)
    return next((size for size in sizes if text.endswith(string[:size])), 0)


@final
class Ear:
    """Listens to one answer in the engine's thread and sends on what there is to show."""

    def __init__(
        self,
        index: int,
        send: Callable[[Event | Exception], None],
        decode: Callable[[list[int]], str],
        stops: StopStrings,
    ) -> None:
        self._index = index
        self._send = send
        self._pieces = Pieces(decode)
        self._stops = stops

    def hear(self, token: Token) -> bool:
        """Show what can be shown; no more is wanted once a stop string was found."""
        text, found = self._stops.add(self._pieces.add(token.id))
        self._send(Event(self._index, text, (token,), "stop" if found else None))
        return not found

    def end(self, reason: Reason) -> None:
        """Show the rest."""
        text, found = self._stops.add(self._pieces.rest())
        rest = "" if found else self._stops.rest()
        self._send(Event(self._index, text + rest, (), "stop" if found else reason))

    def fail(self, error: Exception) -> None:
        """Tell."""
        self._send(error)


@final
class Exchange:
    """One request's answers: their rows, and the events of all of them in one queue.

    ``report`` is called with the counts when it is over, however it ends.
    """

    def __init__(self, *, num_prompt_tokens: int, report: Callable[[Counts], None]) -> None:
        self.rows: list[Row] = []
        self.counts = Counts(num_prompt_tokens)
        self._report = report
        self._began = time.monotonic()
        self._is_over = False
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Event | Exception] = asyncio.Queue()

    def ear(self, index: int, decode: Callable[[list[int]], str], stops: Sequence[str]) -> Ear:
        """A listener for the row of that number."""
        return Ear(index, self._send, decode, StopStrings(stops))

    def close(self) -> None:
        """Nobody wants more of the answers: those that are not whole are given up."""
        for row in self.rows:
            row.leave()
        if not self._is_over:
            self._is_over = True
            self.counts.seconds = time.monotonic() - self._began
            self._report(self.counts)

    async def events(self) -> AsyncIterator[list[Event]]:
        """All that is new at a time, until every answer has ended.

        Raises:
            GenerationError: one of the answers cannot be gone on with.
        """
        going = len(self.rows)
        while going:
            news = [await self._queue.get()]
            while not self._queue.empty():
                news.append(self._queue.get_nowait())
            events = _joined(news)
            self.counts.completion += sum(len(event.tokens) for event in events)
            if self.counts.first_seconds is None and self.counts.completion:
                self.counts.first_seconds = time.monotonic() - self._began
            going -= sum(event.reason is not None for event in events)
            yield events

    def _send(self, event: Event | Exception) -> None:
        try:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, event)
        except RuntimeError:  # the loop is closed: the server has stopped without waiting for this answer
            for row in self.rows:
                row.leave()


def _joined(news: Sequence[Event | Exception]) -> list[Event]:
    """One event for each answer, in their order: a client that is slow to read gets fewer and longer pieces."""
    joined: dict[int, Event] = {}
    for event in news:
        if isinstance(event, Exception):
            raise GenerationError(str(event) or type(event).__name__) from event
        before = joined.get(event.index, Event(event.index))
        joined[event.index] = Event(
            event.index, before.text + event.text, before.tokens + event.tokens, event.reason or before.reason
        )
    return [joined[index] for index in sorted(joined)]
