"""What stands between a socket and the answers: keys, hosts, sizes and times."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from glm_lightning.serving.errors import RefusedError

OPEN = ("/", "/health")
"""What needs no key: the chat page, which asks for one, and what tells a load balancer that the server lives."""

SECONDS = 30.0
"""That a client may take to send its request."""


@final
class Keys:
    """API keys, kept as digests and compared in constant time, all of them always."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def allow(self, authorization: str | None) -> bool:
        """Whether a header ``Authorization: Bearer KEY`` holds one of them."""
        scheme, _, key = (authorization or "").partition(" ")
        given = _digest(key.strip())
        found = False
        for known in self._digests:
            found |= hmac.compare_digest(known, given)
        return found and scheme.lower() == "bearer"


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


@final
class Guard:
    """Lets requests through that may come in, and refuses the others in OpenAI's form.

    Args:
        app: what they come to.
        keys: one of which a request must have, if there are any.
        hosts: names under which the server may be called; None: any. A page on the internet can let its own name point
            to this machine and so read from a server that has no key; a browser still says which name it called.
        max_body: bytes of a request.
    """

    def __init__(self, app: ASGIApp, *, keys: Keys, hosts: frozenset[str] | None, max_body: int) -> None:
        self._app = app
        self._keys, self._hosts = keys, hosts
        self._max_body = max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            headers = Headers(scope=scope)
            self._check(scope["path"], headers)
            async with asyncio.timeout(SECONDS):
                body = await self._body(receive, headers)
        except TimeoutError:
            slow = RefusedError(408, f"The request did not arrive within {SECONDS:.0f} s.", headers=_CLOSE)
            await slow.response()(scope, receive, send)
        except RefusedError as refused:
            await _refuse(refused, receive, send)
        except _GoneError:
            pass
        else:
            await self._app(scope, _replayed(body, receive), send)

    def _check(self, path: str, headers: Mapping[str, str]) -> None:
        host = _name(headers.get("host", ""))
        if self._hosts is not None and host not in self._hosts:
            raise RefusedError(421, f"This server is not called {host!r}; start it with --host, and a key.")
        if self._keys and path not in OPEN and not self._keys.allow(headers.get("authorization")):
            raise RefusedError(
                401,
                "This server wants an API key: send the header 'Authorization: Bearer KEY' with one of its keys.",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    async def _body(self, receive: Receive, headers: Mapping[str, str]) -> bytes:
        """The whole body.

        Raises:
            RefusedError: it is too large.
        """
        parts: list[bytes] = []
        size = 0
        too_large = RefusedError(
            413,
            f"The request is larger than {self._max_body / (1 << 20):g} MiB.",
            code="request_too_large",
            headers=_CLOSE,
        )
        if len(length := headers.get("content-length", "0")) > 18 or int(length) > self._max_body:
            raise too_large
        async for part in _parts(receive):
            size += len(part)
            if size > self._max_body:
                raise too_large
            parts.append(part)
        return b"".join(parts)


async def _parts(receive: Receive) -> AsyncIterator[bytes]:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _GoneError
        yield message.get("body", b"")
        if not message.get("more_body", False):
            return


async def _refuse(refused: RefusedError, receive: Receive, send: Send) -> None:
    """Answer at once, and throw away what still comes: most clients read nothing before they have sent everything."""
    response = refused.response()
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": response.body, "more_body": True})
    with contextlib.suppress(TimeoutError, _GoneError):
        async with asyncio.timeout(SECONDS):
            await _thrown_away(receive)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _thrown_away(receive: Receive) -> None:
    async for _ in _parts(receive):
        pass


_CLOSE = {"Connection": "close"}


class _GoneError(Exception):
    """The client left before its request was there."""


def _name(host: str) -> str:
    """The host of ``host:port``, an IPv6 address without its brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.rpartition(":")[0].lower() if host.count(":") == 1 else host.lower()


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that gives the body, which was read already, and then goes on."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay
