"""Answers of ``/v1/chat/completions``, whole and in pieces."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, field
from typing import Any, Literal, final

from openai.types.chat import ChatCompletion, ChatCompletionChunk

from glm_lightning.inference.rows import Token
from glm_lightning.serving.answers import Answer
from glm_lightning.serving.exchange import Event, Exchange, Reason
from glm_lightning.serving.library import Served
from glm_lightning.templates.base import Known
from glm_lightning.tokenizers import Tokenizer
from glm_lightning.types import Message, ToolCall

Finish = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What decides how an answer is read.

    Args:
        served: who answers.
        tools: the definitions that were shown; None: no call is looked for.
        thinking: as the prompt was made.
        has_logprobs: whether the tokens' logarithms are told.
        calls_one: whether of several calls only the first is wanted.
    """

    served: Served
    tools: Known = None
    thinking: bool | None = None
    has_logprobs: bool = False
    calls_one: bool = False

    def settled(self, text: str) -> Message:
        """What is sure of an unfinished answer."""
        return self._wanted(self.served.template.settled(text, thinking=self.thinking, tools=self.tools))

    def parsed(self, text: str) -> Message:
        """What a finished answer says."""
        return self._wanted(self.served.template.parse(text, thinking=self.thinking, tools=self.tools))

    def _wanted(self, message: Message) -> Message:
        if not self.calls_one:
            return message
        return Message(message.role, message.content, reasoning=message.reasoning, tool_calls=message.tool_calls[:1])


@final
class Choice:
    """One of the answers: its text so far, and how much of what it says was told."""

    def __init__(self, index: int, question: Question) -> None:
        self.index = index
        self.reason: Reason | None = None
        self._question = question
        self._text = ""
        self._tokens: list[Token] = []
        self._told = _Told()

    def add(self, event: Event) -> None:
        """Take what is new."""
        self._text += event.text
        self._tokens += event.tokens
        self.reason = event.reason or self.reason

    def chunk(self) -> dict[str, Any] | None:
        """What can be told by now and was not: a choice of a chunk, None if that is nothing."""
        message = self._question.settled(self._text) if self.reason is None else self._question.parsed(self._text)
        delta = self._told.delta(message)
        if not delta and self.reason is None:
            return None
        choice: dict[str, Any] = {"index": self.index, "delta": delta, "logprobs": None}
        if self._question.has_logprobs:
            choice["logprobs"] = self._logprobs()
            self._tokens = []
        return choice | {"finish_reason": None if self.reason is None else self._finish(message)}

    def whole(self) -> dict[str, Any]:
        """The finished answer: a choice of a completion."""
        message = self._question.parsed(self._text)
        said: dict[str, Any] = {"role": "assistant", "content": message.content, "refusal": None}
        if message.reasoning:
            said["reasoning_content"] = message.reasoning
        if message.tool_calls:
            said |= {"content": message.content or None, "tool_calls": [_call(call) for call in message.tool_calls]}
        return {
            "index": self.index,
            "message": said,
            "logprobs": self._logprobs() if self._question.has_logprobs else None,
            "finish_reason": self._finish(message),
        }

    def _finish(self, message: Message) -> Finish:
        assert self.reason is not None
        return "tool_calls" if message.tool_calls and self.reason == "stop" else self.reason

    def _logprobs(self) -> dict[str, Any]:
        tokenizer = self._question.served.tokenizer
        return {"content": [logarithm(token, tokenizer) for token in self._tokens], "refusal": None}


@dataclass(slots=True)
class _Told:
    """How much of an answer went out."""

    content: int = 0
    reasoning: int = 0
    calls: int = 0
    begun: bool = field(default=False)

    def delta(self, message: Message) -> dict[str, Any]:
        """What of ``message`` did not; from now on it did."""
        delta: dict[str, Any] = {}
        if reasoning := (message.reasoning or "")[self.reasoning :]:
            delta["reasoning_content"] = reasoning
        if content := message.content[self.content :]:
            delta["content"] = content
        if calls := message.tool_calls[self.calls :]:
            delta["tool_calls"] = [{"index": self.calls + i, **_call(call)} for i, call in enumerate(calls)]
        self.reasoning += len(reasoning)
        self.content += len(content)
        self.calls += len(calls)
        return delta


def _call(call: ToolCall) -> dict[str, Any]:
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    return {
        "id": f"call_{secrets.token_hex(12)}",
        "type": "function",
        "function": {"name": call.name, "arguments": arguments},
    }


def logarithm(token: Token, tokenizer: Tokenizer) -> dict[str, Any]:
    """A token with its logarithm and those of the likeliest, as OpenAI's chat has them."""
    return _named(token.id, token.logprob, tokenizer) | {
        "top_logprobs": [_named(other, value, tokenizer) for other, value in token.likeliest]
    }


def _named(token: int, value: float | None, tokenizer: Tokenizer) -> dict[str, Any]:
    text = tokenizer.decode([token], control=True)
    # a token that is part of a character has no text of its own
    is_whole = "\N{REPLACEMENT CHARACTER}" not in text
    return {"token": text, "logprob": value, "bytes": [*text.encode()] if is_whole else None}


@final
class ChatAnswer(Answer):
    """``chat.completion``, and its ``chat.completion.chunk``s."""

    def __init__(self, exchange: Exchange, question: Question) -> None:
        choices = [Choice(index, question) for index in range(len(exchange.rows))]
        super().__init__(exchange, choices, question.served, kind="chatcmpl")

    def _opening(self) -> list[dict[str, Any]]:
        first = {"delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        return [{"index": index, **first} for index in range(len(self._choices))]

    def _body(self, choices: list[dict[str, Any]], **more: Any) -> str:
        body = self._head | {"object": "chat.completion", "choices": choices, **more}
        return ChatCompletion.model_validate(body).model_dump_json(exclude_unset=True)

    def _piece(self, choices: list[dict[str, Any]], **more: Any) -> str:
        body = self._head | {"object": "chat.completion.chunk", "choices": choices, **more}
        return ChatCompletionChunk.model_validate(body).model_dump_json(exclude_unset=True)
