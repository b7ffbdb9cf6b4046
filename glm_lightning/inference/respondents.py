"""Who answers rows: a model that is loaded here, or an endpoint; both keep what they have answered in a ledger."""

from __future__ import annotations

import argparse
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

from glm_lightning.data.questions import Question
from glm_lightning.files import digest
from glm_lightning.inference import options as given
from glm_lightning.inference.asking import ask, key_of, prompts_of
from glm_lightning.inference.endpoint import KEY, Endpoint, EndpointError, at_once, is_endpoint
from glm_lightning.inference.ledger import Ledger, Reply
from glm_lightning.inference.loading import Found
from glm_lightning.inference.messages import conversation, openai_form
from glm_lightning.inference.sampling import Sampling
from glm_lightning.types import Conversation, Message, UserError

FAILURES_IN_A_ROW = 8
"""Questions that an endpoint may fail one after another before it is the endpoint that is wrong, and not they."""


@dataclass(frozen=True)
class Answer:
    """What was said to a row, whether it ended by itself, and whether the row was shortened before it was asked."""

    said: Message
    finished: bool
    shortened: bool


class Respondent(ABC):
    """Answers rows, each of them ``samples`` times: place ``p`` is sample ``p // rows`` of row ``p % rows``."""

    key: str
    """Names all that the replies depend on."""

    @abstractmethod
    def ask(self, ledger: Ledger, progress: Callable[[int], None]) -> dict[int, str]:
        """Put what the ledger lacks into it; why there is no answer, by place.

        Raises:
            UserError: nothing can be asked any more.
        """

    @abstractmethod
    def answer(self, place: int, reply: Reply) -> Answer:
        """What a reply says."""

    @abstractmethod
    def reference(self, answered: Conversation) -> str:
        """The last answer of a row as `Answer.said` would have it."""


@final
class Model(Respondent):
    """A model that is loaded here."""

    def __init__(self, options: argparse.Namespace, model: Found, sampling: Sampling, rows: Sequence[Question]) -> None:
        self._options, self._sampling = options, sampling
        self._glm = given.loaded(options, model)
        self._tools = [row.asked.tools for row in rows]
        asked = [row.asked for row in rows] * options.n
        length = options.max_new_tokens
        self._prompts = prompts_of(self._glm, asked, thinking=[options.thinking] * len(asked), max_new_tokens=length)
        identity = given.identity_of(options, model, self._glm)
        self.key = key_of(identity, self._prompts, max_new_tokens=length, sampling=sampling)

    def ask(self, ledger: Ledger, progress: Callable[[int], None]) -> dict[int, str]:
        """All are answered; see `Respondent.ask`."""
        ask(
            self._glm,
            self._prompts,
            max_new_tokens=self._options.max_new_tokens,
            sampling=self._sampling,
            batch_size=self._options.batch_size,
            ledger=ledger,
            progress=progress,
        )
        return {}

    def answer(self, place: int, reply: Reply) -> Answer:
        """The template reads the text; see `Respondent.answer`."""
        tools = self._tools[place % len(self._tools)]
        said = self._glm.template.parse(reply.text, thinking=self._options.thinking, tools=tools)
        return Answer(said, reply.finished, self._prompts[place].shortened)

    def reference(self, answered: Conversation) -> str:
        """As the model would have to write it; see `Respondent.reference`."""
        return self._glm.template.expected(answered).text


@final
class OfEndpoint(Respondent):
    """An endpoint that speaks OpenAI's protocol; its replies are kept as the messages that it sends."""

    def __init__(self, options: argparse.Namespace, sampling: Sampling, rows: Sequence[Question]) -> None:
        self._endpoint = Endpoint.of(options.source)
        self._workers = options.batch_size
        common = {"model": model_of(self._endpoint, options.model), **_settings(options, sampling)}
        self._bodies = [
            common
            | ({"seed": sampling.seed + sample} if sampling.temperature and sampling.seed is not None else {})
            | openai_form(row.asked)
            for sample in range(options.n)
            for row in rows
        ]
        self.key = digest(self._endpoint.url, self._bodies)

    def ask(self, ledger: Ledger, progress: Callable[[int], None]) -> dict[int, str]:
        """Several at once; see `Respondent.ask`."""
        places = [place for place in range(len(self._bodies)) if place not in ledger.replies]
        progress(len(self._bodies) - len(places))
        failures: dict[int, str] = {}
        in_a_row = 0
        for place, result in at_once(self._reply, places, workers=self._workers):
            progress(1)
            if isinstance(result, Reply):
                ledger.add({place: result})
                in_a_row = 0
                continue
            failures[place] = str(result)
            in_a_row += 1
            if result.is_hopeless or in_a_row == FAILURES_IN_A_ROW:
                raise UserError(_given_up(self._endpoint.url, result))
        return failures

    def _reply(self, place: int) -> Reply:
        choice = self._endpoint.chat(self._bodies[place])
        message, reason = choice["message"], choice.get("finish_reason")
        if reason == "content_filter":
            raise EndpointError("the answer was withheld (content_filter)")
        try:
            _message(message)
        except UserError as error:
            raise EndpointError("; ".join(error.problems)) from None
        return Reply(json.dumps(message, ensure_ascii=False), reason != "length", 0)

    def answer(self, place: int, reply: Reply) -> Answer:
        """The message as it came; see `Respondent.answer`."""
        return Answer(_message(json.loads(reply.text)), reply.finished, shortened=False)

    def reference(self, answered: Conversation) -> str:
        """As the row has it; see `Respondent.reference`."""
        return answered.messages[-1].text


def check_options(options: argparse.Namespace) -> None:
    """Raise `UserError` for options that say nothing to who is to answer."""
    if not is_endpoint(options.source):
        if options.model is not None:
            raise UserError(f"--model is {options.model!r}: names a model of an endpoint, and {options.source} is none")
        return
    held = [name for name in ("dtype", "quantize", "device", "hub", "adapter") if getattr(options, name) is not None]
    if held:
        raise UserError([f"--{name}: {options.source} holds its models itself; leave it out" for name in held])


def model_of(endpoint: Endpoint, name: str | None) -> str:
    """The model to ask for: that of the name, or the only one.

    Raises:
        UserError: the endpoint is not there, takes no key or another one, or has several models and no name is given.
    """
    try:
        offered = endpoint.models()
    except EndpointError as error:
        if error.status is None or error.status in (401, 403):
            raise UserError(_given_up(endpoint.url, error)) from None
        if name is None:
            raise UserError(f"{endpoint.url} lists no models ({error}); name one: --model NAME") from None
        return name
    if name is None and len(offered) != 1:
        raise UserError(f"{endpoint.url} offers {', '.join(offered) or 'no models'}; name one: --model NAME")
    return offered[0] if name is None else name


def _settings(options: argparse.Namespace, sampling: Sampling) -> dict[str, Any]:
    """What every request says of the answer; nothing that a simple server need not know is said without need."""
    settings: dict[str, Any] = {"max_tokens": options.max_new_tokens, "temperature": sampling.temperature}
    if sampling.top_p != 1:
        settings["top_p"] = sampling.top_p
    if options.thinking is not None:
        settings["chat_template_kwargs"] = {"enable_thinking": options.thinking}
    return settings


def _message(message: dict[str, Any]) -> Message:
    """OpenAI's message as a turn.

    Raises:
        UserError: it is none.
    """
    kept = {name: message.get(name) for name in ("content", "tool_calls")}
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    kept["content"] = kept["content"] or ""
    return conversation([{"role": "assistant", "reasoning_content": reasoning, **kept}]).messages[0]


def _given_up(url: str, error: EndpointError) -> str:
    """What went wrong, and what to do."""
    if error.status is None:
        return f"{url}: cannot be reached: {error}; start it, or correct the address"
    if error.status in (401, 403):
        return f"{url}: {error}; set the key that it takes in the environment variable {KEY}"
    return f"{url}: {error}"
