"""Answers of ``/v1/completions``, whole and in pieces."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, final

from openai.types import Completion

from glm_lightning.inference.rows import Token
from glm_lightning.serving.chat import usage
from glm_lightning.serving.exchange import Event, Exchange, Reason
from glm_lightning.serving.library import Served
from glm_lightning.tokenizers import Tokenizer


@final
class _Choice:
    """One of the texts."""

    def __init__(self, index: int, tokenizer: Tokenizer, *, echoed: str, has_logprobs: bool) -> None:
        self._index = index
        self._tokenizer = tokenizer
        self._has_logprobs = has_logprobs
        self._offset = len(echoed)
        self._text = echoed
        self._tokens: list[Token] = []
        self._reason: Reason | None = None

    def add(self, event: Event) -> None:
        """Take what is new."""
        self._text += event.text
        self._tokens += event.tokens
        self._reason = event.reason or self._reason

    def take(self) -> dict[str, Any] | None:
        """What was not told yet; None if that is nothing."""
        if not self._text and self._reason is None:
            return None
        logprobs = self._logprobs() if self._has_logprobs else None
        choice = {"index": self._index, "text": self._text, "logprobs": logprobs, "finish_reason": self._reason}
        self._text, self._tokens = "", []
        return choice

    def _logprobs(self) -> dict[str, Any]:
        names = [self._name(token.id) for token in self._tokens]
        offsets = []
        for name in names:
            offsets.append(self._offset)
            self._offset += len(name)
        return {
            "tokens": names,
            "token_logprobs": [token.logprob for token in self._tokens],
            "top_logprobs": [{self._name(other): v for other, v in token.likeliest} for token in self._tokens],
            "text_offset": offsets,
        }

    def _name(self, token: int) -> str:
        return self._tokenizer.decode([token], control=True)


@final
class TextAnswer:
    """The answer to one request; ``echoed`` are the prompts that are to stand in front of each text."""

    def __init__(self, exchange: Exchange, served: Served, *, echoed: Sequence[str], has_logprobs: bool) -> None:
        self._exchange = exchange
        self._choices = [
            _Choice(index, served.tokenizer, echoed=echo, has_logprobs=has_logprobs)
            for index, echo in enumerate(echoed)
        ]
        self._head: dict[str, Any] = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": served.name,
            "system_fingerprint": served.fingerprint,
        }

    async def whole(self) -> str:
        """A ``text_completion``, once all is there."""
        async for events in self._exchange.events():
            self._take(events)
        choices = [choice.take() for choice in self._choices]
        body = self._head | {"choices": choices, "usage": usage(self._exchange.counts)}
        return Completion.model_validate(body).model_dump_json(exclude_unset=True)

    async def chunks(self, *, include_usage: bool) -> AsyncIterator[str]:
        """The ``text_completion``s, as the texts grow."""
        nothing = {"usage": None} if include_usage else {}
        async for events in self._exchange.events():
            self._take(events)
            choices = [self._choices[event.index].take() for event in events]
            if told := [choice for choice in choices if choice is not None]:
                yield self._chunk(told, **nothing)
        if include_usage:
            yield self._chunk([], usage=usage(self._exchange.counts))

    def _take(self, events: Sequence[Event]) -> None:
        for event in events:
            self._choices[event.index].add(event)

    def _chunk(self, choices: Sequence[dict[str, Any]], **more: Any) -> str:
        # the official type wants a reason even of pieces that are not the last; its clients read None
        body = Completion.model_construct(**self._head, choices=list(choices), **more)
        return body.model_dump_json(exclude_unset=True, warnings=False)
