"""What a chat template is to the rest of the program."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from glm_lightning.files import digest, fingerprint
from glm_lightning.tokenizers import Tokenizer
from glm_lightning.types import Conversation, Message, Segment, UserError

Tools = Sequence[Mapping[str, Any]]
"""Tool definitions as `Conversation.tools` has them."""

Known = Tools | None
"""The definitions that the model was shown, empty where they are not known; None: no call is looked for."""

SHARED = (
    *("base", "choosing", "dialogue", "differences", "function_calls"),
    *("placeholders", "reasoning", "rounds", "tag_calls", "verbatim"),
)
"""The modules of this room that are no template of their own."""


class Template(ABC):
    """Turns conversations into segments: control tokens by name, and text that can never become one.

    A segment is encoded on its own. The generation view of a conversation up to an answer is, id for id, the beginning
    of its training view, if it is asked for with that answer's `thinking`.
    """

    @abstractmethod
    def __init__(self, tokenizer: Tokenizer) -> None:
        """Check that ``tokenizer`` has what the template needs.

        Raises:
            UserError: it has not.
        """

    @property
    @abstractmethod
    def stop_tokens(self) -> tuple[str, ...]:
        """Names of the control tokens that end an answer."""

    @property
    @abstractmethod
    def settings(self) -> str:
        """What decides the rendering besides the code of the class: a template text, switches."""

    @abstractmethod
    def render(self, conversation: Conversation) -> list[list[Segment]]:
        """Training view: the samples of a conversation, one where turns look the same in the middle as at the end.

        Where they do not (reasoning that is dropped from the history), each learned answer is a sample of its own, in
        order, rendered as generation will see it. Of an answer that is learned, everything the model has to generate
        is learned: its text and the control token that ends it.

        Raises:
            UserError: the conversation cannot be rendered.
        """

    @abstractmethod
    def prompt(self, conversation: Conversation, *, thinking: bool | None = None) -> list[Segment]:
        """Generation view of a conversation whose last turn is not an answer: it ends where the answer begins.

        ``thinking`` switches reasoning on or off in the generations that can be switched; None is the generation's own
        default.

        Raises:
            UserError: the conversation cannot be rendered.
        """

    @abstractmethod
    def document(self, text: str) -> list[Segment]:
        """A text that is no conversation: the tokens that every text begins with, the text and the token that ends it.

        Text and end are learned.

        Raises:
            UserError: there is no token that ends a text.
        """

    @abstractmethod
    def thinking(self, answer: Message) -> bool | None:
        """The ``thinking`` of the prompt with which the training view of an answer begins."""

    @abstractmethod
    def parse(self, text: str, *, thinking: bool | None = None, tools: Known = ()) -> Message:
        """What a generated ``text`` (decoded without control tokens) says: content, reasoning, tool calls.

        What only looks like a call, or is not finished, stays text. Nothing is an error.

        Args:
            text: all that was generated.
            thinking: as it was given to `prompt`.
            tools: the definitions that the model was shown; they tell names and types where the text leaves them open.
        """

    @abstractmethod
    def settled(self, text: str, *, thinking: bool | None = None, tools: Known = ()) -> Message:
        """What `parse` will say whatever follows the unfinished ``text``: so much can be shown while it is generated.

        Content and reasoning are beginnings of the final ones, calls are the first of them.
        """

    def clean(self, text: str, *, thinking: bool | None = None, tools: Known = ()) -> str:
        """The answer in a generated ``text`` without its reasoning; tool calls as JSON, a line each. See `parse`."""
        return self.parse(text, thinking=thinking, tools=tools).text

    def expected(self, conversation: Conversation) -> Message:
        """What `parse` makes of the conversation's last answer: what a generated answer is compared with."""
        messages = conversation.messages
        last = max(i for i, message in enumerate(messages) if message.role == "assistant")
        alone = (*(replace(m, learn=False) for m in messages[:last]), replace(messages[last], learn=True))
        sample = self.render(replace(conversation, messages=alone))[-1]
        text = "".join(segment.text for segment in sample if segment.learn)
        return self.parse(text, thinking=self.thinking(messages[last]), tools=conversation.tools)

    @property
    def chat_template(self) -> str | None:
        """The same format for transformers and servers: the ``.jinja`` beside the class; None if the tokenizer has it.

        Rendered and encoded as one text by a tokenizer with the generation's control tokens, it gives the ids of
        `prompt` and of the last sample of `render`, but where a text spells a control token or begins with white space
        that melts into what stands before it.
        """
        file = Path(inspect.getfile(type(self))).with_suffix(".jinja")
        return file.read_text(encoding="utf-8") if file.is_file() else None

    @property
    def name(self) -> str:
        """The name that chooses this template in yaml: its file's."""
        return type(self).__module__.rpartition(".")[2]

    @property
    def fingerprint(self) -> str:
        """Changes with the template's code and settings."""
        shared = [fingerprint(Path(__file__).with_name(f"{name}.py")) for name in SHARED]
        return digest(self.name, shared, fingerprint(Path(inspect.getfile(type(self)))), self.settings)


def without_beginning_of(text: str, *endings: str) -> str:
    """``text`` without what may, at its end, become one of ``endings`` once more follows."""
    sizes = (
        size
        for ending in endings
        for size in range(min(len(ending) - 1, len(text)), 0, -1)
        if text.endswith(ending[:size])
    )
    return text[: len(text) - max(sizes, default=0)]


def framed(text: str, *, prefix: Sequence[str], end: str) -> list[Segment]:
    """A text between control tokens; it and its end are learned."""
    return [*(Segment(control=name) for name in prefix), Segment(text, learn=True), Segment(control=end, learn=True)]


def require(tokenizer: Tokenizer, controls: Sequence[str], *, template: str, model: str) -> None:
    """Raise `UserError` if ``tokenizer`` lacks control tokens of ``template``; ``model`` names whose it has to be."""
    if missing := [name for name in dict.fromkeys(controls) if name not in tokenizer.controls]:
        raise UserError(
            f"template: {template} needs the control tokens {' '.join(missing)}, which the tokenizer has not; "
            f"choose template: jinja, or the tokenizer of {model}"
        )


def refuse(conversation: Conversation, faults: Sequence[str]) -> None:
    """Raise `UserError` for a conversation that a template cannot express, if there are ``faults``."""
    where = f"{conversation.origin}: " if conversation.origin else ""
    if faults:
        raise UserError([f"{where}{fault}" for fault in faults])
