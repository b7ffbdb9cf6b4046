"""An endpoint that speaks OpenAI's protocol: several questions at once, patience where it is busy, a hidden key."""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import itertools
import json
import os
import queue
import random
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, final

from glm_lightning import __version__
from glm_lightning.types import UserError

T = TypeVar("T")

KEY = "GLM_API_KEY"
"""Environment variable of the key that is sent."""

TRIES = 6
"""Times that a question is asked of an endpoint that is busy or does not answer."""

_SECONDS_FOR_AN_ANSWER = 600.0
_LONGEST_PAUSE = 300.0
"""Seconds; who is told to wait longer gives up, for the endpoint means another day."""

_BUSY = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_HOPELESS = frozenset({401, 403, 404, 405})
"""What would be said to every other question as well."""


class EndpointError(Exception):
    """The endpoint gives no answer to a question; ``status`` is HTTP's, None where it was not even reached."""

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason)
        self.status = status

    @property
    def is_hopeless(self) -> bool:
        """Whether every other question would fare alike."""
        return self.status in _HOPELESS


@final
class Endpoint:
    """The endpoint at ``url``, which ends in ``/v1`` mostly; ``key`` is sent with each request if there is one."""

    def __init__(self, url: str, *, key: str | None = None) -> None:
        self.url = url.rstrip("/").removesuffix("/chat/completions")
        self._key = key
        self._opener = urllib.request.build_opener(_NoRedirect)

    @classmethod
    def of(cls, url: str) -> Endpoint:
        """With the key of the environment.

        Raises:
            UserError: the address or the key is none.
        """
        parts = urllib.parse.urlsplit(url)
        if not parts.hostname or parts.username or parts.query or parts.fragment:
            raise UserError(
                f"{parts.hostname or url}: must be an address such as http://localhost:8000/v1; a key is set in {KEY}"
            )
        key = os.environ.get(KEY, "").strip()
        if not key.isascii() or not key.isprintable() or " " in key:
            raise UserError(f"{KEY}: has blanks or characters beyond ASCII, which no header carries; set the key alone")
        return cls(url, key=key or None)

    def models(self) -> list[str]:
        """Names of the models that it offers; asked once.

        Raises:
            EndpointError: it does not say.
        """
        listed = self._asked("models", None, tries=1)
        with contextlib.suppress(KeyError, TypeError):
            return [str(each["id"]) for each in listed["data"]]
        raise EndpointError("lists no models")

    def chat(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The first choice of a chat completion: ``message`` and ``finish_reason``.

        Raises:
            EndpointError: there is none, after as many tries as are worth it.
        """
        answer = self._asked("chat/completions", body, tries=TRIES)
        with contextlib.suppress(KeyError, TypeError, IndexError):
            choice = answer["choices"][0]
            if isinstance(choice["message"], dict):
                return dict(choice)
        raise EndpointError(f"answers without a message: {self._hidden(json.dumps(answer, ensure_ascii=False))}")

    def _asked(self, path: str, body: Mapping[str, Any] | None, *, tries: int) -> Any:
        request = self._request(path, body)
        for attempt in itertools.count(1):
            pause = random.uniform(0.5, 1) * 2 ** (attempt - 1)
            try:
                with self._opener.open(request, timeout=_SECONDS_FOR_AN_ANSWER) as answer:
                    return json.loads(answer.read())
            except urllib.error.HTTPError as error:
                with error:
                    failure = EndpointError(f"{error.code} {self._hidden(_words(error))}", error.code)
                    pause = max(pause, retry_after(error.headers.get("Retry-After")))
            except (OSError, http.client.HTTPException, ValueError) as error:
                failure = EndpointError(
                    self._hidden(str(getattr(error, "reason", "") or error or type(error).__name__))
                )
            is_final = failure.status is not None and failure.status not in _BUSY
            if is_final or attempt == tries or pause > _LONGEST_PAUSE:
                raise failure
            time.sleep(pause)
        raise AssertionError

    def _request(self, path: str, body: Mapping[str, Any] | None) -> urllib.request.Request:
        headers = {"User-Agent": f"glm_lightning/{__version__}", "Accept": "application/json"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        if body is None:
            return urllib.request.Request(f"{self.url}/{path}", headers=headers)
        headers["Content-Type"] = "application/json"
        return urllib.request.Request(f"{self.url}/{path}", json.dumps(body).encode(), headers)

    def _hidden(self, text: str) -> str:
        """Its beginning without the key, which some endpoints repeat."""
        return (text.replace(self._key, "***") if self._key else text)[:300]


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Nobody else is told the key."""

    def redirect_request(self, *_: Any) -> None:
        return None


def is_endpoint(source: str) -> bool:
    """Whether ``source`` is an address, and neither a folder nor a name on a hub."""
    return source.startswith(("http://", "https://"))


def retry_after(value: str | None) -> float:
    """Seconds that the header asks to wait, which names them or a time; 0 where it says nothing."""
    if value is None:
        return 0.0
    with contextlib.suppress(ValueError):
        return max(0.0, float(value))
    with contextlib.suppress(ValueError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return 0.0


def _words(error: urllib.error.HTTPError) -> str:
    """What the body of an error says, as OpenAI writes it or otherwise."""
    text = error.read(1 << 16).decode("utf-8", "replace")
    with contextlib.suppress(ValueError, KeyError, TypeError):
        found = json.loads(text)["error"]
        return str(found["message"] if isinstance(found, dict) else found)
    return " ".join(text.split()) or str(error.reason)


def at_once(ask: Callable[[int], T], places: Sequence[int], *, workers: int) -> Iterator[tuple[int, T | EndpointError]]:
    """What ``ask`` gives for each place, as it comes, or the error that it raises; so many are asked at once.

    A place is asked only when the caller comes back for more, so who stops has no more than ``workers`` questions
    under way. The threads end with the process: nobody waits for their answers.
    """
    waiting: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[int, T | Exception]] = queue.SimpleQueue()
    rest = iter(places)

    def work() -> None:
        while (place := waiting.get()) is not None:
            try:
                done.put((place, ask(place)))
            except Exception as error:
                done.put((place, error))

    for place in itertools.islice(rest, workers):
        waiting.put(place)
        threading.Thread(target=work, daemon=True).start()
    try:
        for _ in places:
            place, result = done.get()
            if isinstance(result, Exception) and not isinstance(result, EndpointError):
                raise result
            yield place, result
            waiting.put(next(rest, None))
    finally:
        for _ in range(workers):
            waiting.put(None)
