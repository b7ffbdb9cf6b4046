"""What clients may ask for: OpenAI's request bodies, as far as they can be answered; nothing is ignored silently."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from glm_lightning.inference.rows import Weighting
from glm_lightning.inference.sampling import Sampling

MOST_CHOICES = 64
_SMALLEST_TOP_P = 1e-9

Text = Annotated[str, StringConstraints(min_length=1)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]
TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]


class _Strict(BaseModel):
    """An unknown key is an error: to leave it out silently would be to answer something else."""

    model_config = ConfigDict(extra="forbid", strict=False)


class StreamOptions(_Strict):
    """What a stream has besides the answer."""

    include_usage: bool = False
    include_obfuscation: bool = False

    @field_validator("include_obfuscation")
    @classmethod
    def _not_offered(cls, value: bool) -> bool:
        if value:
            raise ValueError("is not offered: leave it out or give false")
        return value


class ResponseFormat(_Strict):
    """How an answer is to be written: freely."""

    type: Literal["text"]


class Thinking(_Strict):
    """The switch for reasoning as Zhipu's own service has it."""

    type: Literal["enabled", "disabled"]


class TemplateOptions(_Strict):
    """The switch for reasoning as other servers have it."""

    enable_thinking: bool | None = None


class _Generation(_Strict):
    """What both kinds of requests share."""

    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    stop: Text | Annotated[list[Text], Field(max_length=16)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: dict[TokenId, Bias] | None = None
    # what concerns a service with accounts and says nothing about the answer
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _whole_characters(cls, body: Any) -> Any:
        try:
            if isinstance(body, dict):
                json.dumps(body, ensure_ascii=False).encode("utf-8")
        except (UnicodeEncodeError, RecursionError) as error:
            raise ValueError("the body holds half a character (a lone surrogate), or is nested too deep") from error
        return body

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> _Generation:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: only with stream=true")
        return self

    @property
    def stops(self) -> list[str]:
        """The strings that end an answer."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the counts."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def num_choices(self) -> int:
        """Answers wanted."""
        return self.n or 1

    def sampling(self, default: Sampling) -> Sampling:
        """How the answer is drawn; ``default`` for what the request leaves open."""
        temperature = default.temperature if self.temperature is None else self.temperature
        top_p = default.top_p if self.top_p is None else max(self.top_p, _SMALLEST_TOP_P)
        return Sampling(temperature=temperature, top_p=top_p, seed=None if self.seed is None else self.seed % (1 << 64))

    @property
    def weighting(self) -> Weighting | None:
        """What is added to the logits, if anything."""
        if not (self.frequency_penalty or self.presence_penalty or self.logit_bias):
            return None
        return Weighting(
            frequency=self.frequency_penalty or 0.0,
            presence=self.presence_penalty or 0.0,
            bias=self.logit_bias or {},
        )


class ChatRequest(_Generation):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    thinking: Thinking | None = None
    chat_template_kwargs: TemplateOptions | None = None

    @field_validator("tools")
    @classmethod
    def _named(cls, tools: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
        for number, tool in enumerate(tools or ()):
            function = tool.get("function")
            if not isinstance(tool.get("type"), str):
                raise ValueError(f"{number}.type: must be a text, such as 'function'")
            if tool["type"] == "function" and not (isinstance(function, dict) and _is_name(function.get("name"))):
                raise ValueError(f"{number}.function.name: must be a name without white space and braces")
        return tools

    @model_validator(mode="after")
    def _logarithms(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: only with logprobs=true")
        return self

    @property
    def wanted_tokens(self) -> int | None:
        """The longest answer that the request wants."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def shown_tools(self) -> list[dict[str, Any]]:
        """The tools that the model is shown."""
        return [] if self.tool_choice == "none" else self.tools or []

    @property
    def reasons(self) -> bool | None:
        """Whether the answer is reasoned about; None is the generation's own default."""
        if self.thinking is not None:
            return self.thinking.type == "enabled"
        if self.chat_template_kwargs is not None and self.chat_template_kwargs.enable_thinking is not None:
            return self.chat_template_kwargs.enable_thinking
        return False if self.reasoning_effort == "none" else None

    @property
    def num_logprobs(self) -> int | None:
        """How many of the likeliest tokens are told with each; None: no logarithm at all."""
        return (self.top_logprobs or 0) if self.logprobs else None

    def turns(self) -> list[dict[str, Any]]:
        """The messages as `glm_lightning.inference.messages.conversation` reads them."""
        return _in_order([_turn(message) for message in self.messages])


class CompletionRequest(_Generation):
    """``POST /v1/completions``: a text that is gone on with, without any chat template."""

    prompt: str | list[TokenId] | list[str] | list[list[TokenId]]
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: bool = False
    best_of: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _what_is_not_offered(self) -> CompletionRequest:
        if self.best_of is not None and self.best_of != self.num_choices:
            raise ValueError("best_of: must be n, or left out; answers are not ranked")
        if self.echo and self.logprobs is not None:
            raise ValueError("echo: not together with logprobs; those of a prompt are not told")
        return self

    @property
    def prompts(self) -> Sequence[str | list[int]]:
        """Each text, or each list of ids, that is gone on with."""
        given: Any = self.prompt
        if isinstance(given, str) or (given and isinstance(given[0], int)):
            return [given]
        return list(given)


def _turn(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message with its text in one piece, and without the keys that say nothing to a model."""
    known = ("role", "content", "reasoning_content", "tool_calls", "tool_call_id")
    turn = {key: message[key] for key in known if message.get(key) is not None}
    if turn.get("role") == "developer":
        turn["role"] = "system"
    content = turn.get("content")
    if isinstance(content, list) and all(_is_text(part) for part in content):
        turn["content"] = "".join(part["text"] for part in content)
    return turn


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and re.fullmatch(r"[^\s{}]{1,128}", name) is not None


def _is_text(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _in_order(turns: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Results of tools in the order of their calls: templates show no ids."""
    ordered: list[dict[str, Any]] = []
    places: dict[str, int] = {}
    for are_results, group in groupby(turns, key=lambda turn: turn.get("role") == "tool"):
        run = list(group)
        if are_results:
            run.sort(key=lambda turn: places.get(str(turn.get("tool_call_id")), len(places)))
        else:
            calls = run[-1].get("tool_calls")
            ids = [call.get("id") for call in calls if isinstance(call, Mapping)] if isinstance(calls, list) else []
            places = {str(name): place for place, name in enumerate(ids)}
        ordered += run
    return ordered
