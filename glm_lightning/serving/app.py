"""The HTTP interface: OpenAI's paths over the engine."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import hashlib
import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, final

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from glm_lightning import __version__
from glm_lightning.inference.messages import conversation
from glm_lightning.inference.prompts import prompt_ids
from glm_lightning.inference.rows import Row
from glm_lightning.serving.answers import Answer
from glm_lightning.serving.chat import ChatAnswer, Question
from glm_lightning.serving.completions import TextAnswer
from glm_lightning.serving.engine import BusyError, ClosedError, Engine
from glm_lightning.serving.errors import RefusedError
from glm_lightning.serving.exchange import Exchange, GenerationError
from glm_lightning.serving.guards import Guard, Keys
from glm_lightning.serving.library import Library, Served, UnknownModelError
from glm_lightning.serving.metrics import Metrics
from glm_lightning.serving.requests import ChatRequest, CompletionRequest
from glm_lightning.serving.stream import EventStream, GoneError, unless_gone
from glm_lightning.types import UserError

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
_COUNTED = (CHAT, COMPLETIONS, "/v1/models", "/health", "/metrics", "/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the HTTP interface allows.

    Args:
        keys: one of which every request must have, if there are any.
        hosts: names under which the server may be called; None: any.
        origins: web pages of which other servers may call this one.
        max_body: bytes of a request.
        max_new_tokens: longest answer of a request that does not say.
    """

    keys: Sequence[str] = ()
    hosts: frozenset[str] | None = None
    origins: Sequence[str] = ()
    max_body: int = 4 << 20
    max_new_tokens: int = 2048


def application(library: Library, engine: Engine, settings: Settings) -> ASGIApp:
    """The whole server, engine included: it runs while the application does."""
    metrics = Metrics(engine)
    app: ASGIApp = Guard(
        _routes(Api(library, engine, metrics, settings)),
        keys=Keys(settings.keys),
        hosts=settings.hosts,
        max_body=settings.max_body,
    )
    if settings.origins:
        app = CORSMiddleware(app, allow_origins=settings.origins, allow_methods=["*"], allow_headers=["*"])
    return _Counting(app, metrics)


def _routes(api: Api) -> FastAPI:
    @contextlib.asynccontextmanager
    async def running(app: FastAPI) -> AsyncIterator[None]:
        api.engine.start()
        yield
        await asyncio.to_thread(api.engine.close)

    # no pages of documentation: they load scripts from elsewhere
    app = FastAPI(title="glm serve", version=__version__, lifespan=running, docs_url=None, redoc_url=None)
    post = functools.partial(app.add_api_route, methods=["POST"], response_model=None, responses=_REFUSALS)
    get = functools.partial(app.add_api_route, methods=["GET"], response_model=None)
    post(CHAT, api.chat, responses={200: {"model": ChatCompletion}, **_REFUSALS})
    post(COMPLETIONS, api.complete, responses={200: {"model": Completion}, **_REFUSALS})
    get("/v1/models", api.models)
    get("/v1/models/{name:path}", api.model, responses=_REFUSALS)
    get("/health", api.health, responses={503: {"description": "The engine has stopped"}})
    get("/metrics", api.metrics_text)
    get("/", page, include_in_schema=False)
    app.add_exception_handler(RefusedError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _broken)
    return app


@final
class Api:
    """What stands behind the paths."""

    def __init__(self, library: Library, engine: Engine, metrics: Metrics, settings: Settings) -> None:
        self.engine = engine
        self._library, self._metrics, self._settings = library, metrics, settings

    async def chat(self, body: ChatRequest, request: Request) -> Response:
        """Answer a conversation."""
        served = await self._served(body.model)
        ids = await asyncio.to_thread(_chat_ids, served, body)
        exchange = self._exchange(served, body, [ids], wanted=body.wanted_tokens, num_logprobs=body.num_logprobs)
        question = Question(
            served=served,
            tools=body.shown_tools or None,
            thinking=body.reasons,
            has_logprobs=body.num_logprobs is not None,
            calls_one=body.parallel_tool_calls is False,
        )
        return await self._answered(request, body, exchange, ChatAnswer(exchange, question))

    async def complete(self, body: CompletionRequest, request: Request) -> Response:
        """Go on with texts."""
        served = await self._served(body.model)
        prompts = await asyncio.to_thread(_text_ids, served, body)
        exchange = self._exchange(served, body, prompts, wanted=body.max_tokens or 16, num_logprobs=body.logprobs)
        echoed = [
            served.tokenizer.decode(ids, control=True) if body.echo and not isinstance(prompt, str) else prompt
            for prompt, ids in zip(body.prompts, prompts, strict=True)
        ]
        answer = TextAnswer(
            exchange,
            served,
            echoed=[str(echo) if body.echo else "" for echo in echoed for _ in range(body.num_choices)],
            has_logprobs=body.logprobs is not None,
        )
        return await self._answered(request, body, exchange, answer)

    async def models(self) -> Response:
        """All models that can be asked for."""
        data = [self._described(name) for name in self._library.names()]
        return _json({"object": "list", "data": data})

    async def model(self, name: str) -> Response:
        """One model."""
        if name not in self._library.names():
            raise _unknown(f"The model {name!r} does not exist.")
        return _json(self._described(name))

    async def health(self) -> Response:
        """Whether answers are made."""
        alive = self.engine.is_alive
        return _json({"status": "ok" if alive else "stopped"}, status=200 if alive else 503)

    async def metrics_text(self) -> Response:
        """Prometheus' text."""
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    def _described(self, name: str) -> dict[str, Any]:
        model = Model(id=name, created=self._library.created, object="model", owned_by="glm_lightning")
        return model.model_dump(exclude_unset=True)

    async def _served(self, name: str | None) -> Served:
        try:
            return await self._library.get(name)
        except UnknownModelError as error:
            raise _unknown(str(error)) from error

    def _exchange(
        self,
        served: Served,
        body: ChatRequest | CompletionRequest,
        prompts: Sequence[list[int]],
        *,
        wanted: int | None,
        num_logprobs: int | None,
    ) -> Exchange:
        """The rows of a request, in the engine's queue.

        Raises:
            RefusedError: they are too long, or there is no place.
        """
        if unknown := [token for token in body.logit_bias or () if token >= served.tokenizer.vocab_size]:
            raise RefusedError(400, f"logit_bias: there is no token {unknown[0]}", param="logit_bias")
        num_tokens = sum(map(len, prompts))
        exchange = Exchange(num_prompt_tokens=num_tokens, report=functools.partial(self._metrics.report, served.name))
        for ids in prompts:
            longest = self._longest(served, ids, wanted)
            for draw in range(body.num_choices):
                exchange.rows.append(
                    Row(
                        ids,
                        exchange.ear(len(exchange.rows), served.tokenizer.decode, body.stops),
                        max_new_tokens=longest,
                        stop_ids=served.stop_ids,
                        sampling=body.sampling(served.sampling),
                        draw=draw,
                        weighting=body.weighting,
                        num_logprobs=num_logprobs,
                    )
                )
        self._submit(served, exchange.rows)
        return exchange

    def _longest(self, served: Served, ids: list[int], wanted: int | None) -> int:
        room = served.max_context - len(ids)
        if room < max(wanted or 1, 1):
            asked = f" and the answer may have {wanted:,}" if wanted else ""
            raise RefusedError(
                400,
                f"This model's context is {served.max_context:,} tokens; the request has {len(ids):,}{asked}. "
                "Shorten the messages or the answer.",
                code="context_length_exceeded",
                param="messages",
            )
        return min(room, self._settings.max_new_tokens) if wanted is None else wanted

    def _submit(self, served: Served, rows: Sequence[Row]) -> None:
        limits = self.engine.limits
        if len(rows) > limits.max_rows or not all(self.engine.fits(served.speaker, [row]) for row in rows):
            raise RefusedError(
                400,
                f"The request is too large for this server: it generates {limits.max_rows:,} answers at once and has "
                f"room for {limits.max_tokens:,} tokens. Ask for fewer or shorter answers (n, max_tokens).",
                code="request_too_large",
            )
        try:
            self.engine.submit(served.speaker, rows)
        except BusyError as error:
            seconds = {"Retry-After": str(error.seconds)}
            raise RefusedError(429, f"The server is busy: {error}.", code="queue_full", headers=seconds) from error
        except ClosedError:
            raise RefusedError(503, "The server is shutting down.", headers={"Retry-After": "10"}) from None

    async def _answered(
        self, request: Request, body: ChatRequest | CompletionRequest, exchange: Exchange, answer: Answer
    ) -> Response:
        if body.stream:
            return EventStream(answer.chunks(include_usage=body.include_usage), exchange.close)
        try:
            text = await unless_gone(answer.whole(), request.receive)
        except GenerationError as error:
            raise RefusedError(500, f"The answer could not be made: {error}.") from error
        except GoneError:
            return Response(status_code=499)  # nobody reads it
        finally:
            exchange.close()
        return Response(text, media_type="application/json")


def _chat_ids(served: Served, body: ChatRequest) -> list[int]:
    try:
        asked = conversation(body.turns(), body.shown_tools)
        segments = served.template.prompt(asked, thinking=body.reasons)
    except UserError as error:
        raise RefusedError(400, "; ".join(error.problems), param="messages") from error
    return prompt_ids([segments], served.tokenizer)[0]


def _text_ids(served: Served, body: CompletionRequest) -> list[list[int]]:
    """Ids of each prompt; a text gets what every text begins with in the network's training."""
    prompts: list[list[int]] = []
    for prompt in body.prompts:
        try:
            ids = served.text_ids(prompt) if isinstance(prompt, str) else list(prompt)
        except UserError as error:
            raise RefusedError(400, "; ".join(error.problems), param="prompt") from error
        if not ids:
            raise RefusedError(400, "prompt: is empty; give at least one token", param="prompt")
        if max(ids) >= served.tokenizer.vocab_size:
            largest = served.tokenizer.vocab_size - 1
            raise RefusedError(400, f"prompt: there is no token {max(ids)}; the last is {largest}", param="prompt")
        prompts.append(ids)
    if not prompts:
        raise RefusedError(400, "prompt: is empty; give at least one", param="prompt")
    return prompts


@functools.cache
def _page() -> tuple[bytes, str]:
    """The chat page, and what a browser may let it do: run what stands in it, and call this server."""
    html = (files("glm_lightning") / "serving" / "page.html").read_bytes()
    inline = {tag: _hashes(html, tag) for tag in ("script", "style")}
    policy = (
        f"default-src 'none'; script-src {inline['script']}; style-src {inline['style']}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return html, policy


def _hashes(html: bytes, tag: str) -> str:
    found = re.findall(rf"<{tag}>(.*?)</{tag}>".encode(), html, re.DOTALL)
    return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'" for text in found)


async def page() -> Response:
    """A page to chat on."""
    html, policy = _page()
    headers = {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
    return Response(html, media_type="text/html; charset=utf-8", headers=headers)


def _json(value: Any, *, status: int = 200) -> Response:
    from starlette.responses import JSONResponse

    return JSONResponse(value, status_code=status)


def _unknown(message: str) -> RefusedError:
    return RefusedError(404, message, code="model_not_found", param="model")


_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"description": what, "content": {"application/json": {"schema": _ERROR}}}
    for status, what in {
        400: "Not a request that can be answered",
        401: "No valid key",
        404: "No such model",
        408: "Sent too slowly",
        413: "Too large",
        429: "All places are taken; Retry-After says when to try again",
        503: "Shutting down",
    }.items()
}


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    return error.response()


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    if "json" not in request.headers.get("content-type", ""):  # what any page may send without asking is not read
        return RefusedError(400, "The body is read only with the header Content-Type: application/json.").response()
    problems = []
    for each in error.errors():
        where = ".".join(str(part) for part in each["loc"] if part != "body")
        problems.append(f"{where}: {each['msg']}" if where else str(each["msg"]))
    first = error.errors()[0]["loc"] if error.errors() else ()
    param = next((part for part in first if part != "body" and isinstance(part, str)), None)
    return RefusedError(400, "; ".join(dict.fromkeys(problems)), param=param).response()


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    return RefusedError(error.status_code, str(error.detail), headers=headers).response()


async def _broken(request: Request, error: Exception) -> Response:
    return RefusedError(500, "The server made a mistake; its log says which.").response()


@final
class _Counting:
    """Counts requests by their status."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                path = scope["path"] if scope["path"] in _COUNTED else "other"
                self._metrics.count(path, message["status"])
            await send(message)

        await self._app(scope, receive, counted if scope["type"] == "http" else send)
