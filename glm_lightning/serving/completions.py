"""Answers of ``/v1/completions``, whole and in pieces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

from openai.types import Completion

from glm_lightning.inference.rows import Token
from glm_lightning.serving.answers import Answer
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

    def chunk(self) -> dict[str, Any] | None:
        """What was not told yet; None if that is nothing."""
        return self.whole() if self._text or self._reason else None

    def whole(self) -> dict[str, Any]:
        """All of it, if nothing was told yet."""
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
class TextAnswer(Answer):
    """``text_completion``s; ``echoed`` are the prompts that are to stand in front of each text."""

    def __init__(self, exchange: Exchange, served: Served, *, echoed: Sequence[str], has_logprobs: bool) -> None:
        choices = [
            _Choice(index, served.tokenizer, echoed=echo, has_logprobs=has_logprobs)
            for index, echo in enumerate(echoed)
        ]
        super().__init__(exchange, choices, served, kind="cmpl")

    def _body(self, choices: list[dict[str, Any]], **more: Any) -> str:
        body = self._head | {"object": "text_completion", "choices": choices, **more}
        return Completion.model_validate(body).model_dump_json(exclude_unset=True)

    def _piece(self, choices: list[dict[str, Any]], **more: Any) -> str:
        # the official type wants a reason even of pieces that are not the last; its clients read None
        body = Completion.model_construct(**self._head, object="text_completion", choices=choices, **more)
        return body.model_dump_json(exclude_unset=True, warnings=False)
