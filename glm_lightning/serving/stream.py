"""Server-sent events that end when the client does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from glm_lightning.serving.errors import body
from glm_lightning.serving.exchange import GenerationError

QUIET = 15.0
"""Seconds after which a comment is sent, so that nobody on the way takes the connection for dead."""

STALLED = 120.0
"""Seconds that a client may take to read what was sent before it is given up."""


class GoneError(Exception):
    """The client has left."""


@final
class EventStream(Response):
    """Sends events as they come; ``leave`` is called at the end, whatever it is."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[str], leave: Callable[[], None]) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._leave = leave

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        try:
            await unless_gone(self._sent(send), receive)
        except (GoneError, TimeoutError, OSError):
            pass
        finally:
            self._leave()

    async def _sent(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async for event in _with_pauses(self._events):
                await _send(send, ": still here\n\n" if event is None else f"data: {event}\n\n")
            await _send(send, "data: [DONE]\n\n")
        except GenerationError as error:
            await _send(send, f"data: {body(str(error), kind='server_error')}\n\n")
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _send(send: Send, text: str) -> None:
    # not `wait_for`, which before Python 3.12 forgets a cancellation that comes as the message is sent
    async with asyncio.timeout(STALLED):
        await send({"type": "http.response.body", "body": text.encode(), "more_body": True})


async def _with_pauses(events: AsyncIterator[str]) -> AsyncIterator[str | None]:
    """The events, and None whenever there was none for a while."""
    while True:
        following = asyncio.ensure_future(anext(events))
        try:
            while not (await asyncio.wait([following], timeout=QUIET))[0]:
                yield None
            yield following.result()
        except StopAsyncIteration:
            return
        finally:
            following.cancel()


async def unless_gone(work: Coroutine[Any, Any, Any], receive: Receive) -> Any:
    """The result of ``work``, which is given up if the client leaves first.

    Raises:
        GoneError: it has.
    """
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise GoneError
        return working.result()
    finally:
        leaving.cancel()
        if not working.done():
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
