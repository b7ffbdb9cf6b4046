"""Any other causal language model: the chat template that comes with the tokenizer, with exact loss masks."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any, final

import jinja2

from glm_lightning.templates import reasoning as thoughts
from glm_lightning.templates.base import Known, Template, framed, without_beginning_of
from glm_lightning.templates.differences import Differences, UnmaskableError
from glm_lightning.templates.placeholders import Placeholders
from glm_lightning.templates.reasoning import OPEN, split
from glm_lightning.templates.tag_calls import closed, extract
from glm_lightning.templates.verbatim import copies_contents
from glm_lightning.tokenizers import Tokenizer
from glm_lightning.types import Conversation, Message, Segment, ToolCall, UserError

_PROBE = (Message("user", "?"), Message("assistant", "!"), Message("user", "?"), Message("assistant", "!"))


@final
class Jinja(Template):
    """The tokenizer's own chat template.

    Learned are an answer, what the template puts between the generation prompt and the answer, and the control token
    that ends it; not what follows that token. A conversation is one sample if its turns look the same with and without
    a following turn; else each answer is a sample of its own. Tools, calls and reasoning (``reasoning_content``) go
    through the template as well; what it leaves out of them is refused.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        if not tokenizer.hf.chat_template:
            raise UserError(
                "template: jinja needs a chat template, and the tokenizer has none; put chat_template.jinja into the "
                "model's folder, or set template to one of this program's own"
            )
        self._hf = tokenizer.hf
        self._eos = tokenizer.hf.eos_token
        self._prefix = _in_front(tokenizer)
        controls = tuple(tokenizer.controls)
        verbatim = copies_contents(tokenizer.hf.chat_template)
        self._placeholders = Placeholders(self._text, controls=controls, end=self._eos, verbatim=verbatim)
        self._differences = Differences(self._text, controls=controls, end=self._eos)
        self._lead, self._trail, self._stops = self._probe()
        self._opens_reasoning = self._opened()

    @property
    def stop_tokens(self) -> tuple[str, ...]:
        """The control tokens that end answers in this template, and the tokenizer's end token."""
        return self._stops

    @property
    def settings(self) -> str:
        """The template's text and the end token."""
        return f"{self._hf.chat_template}\0{self._eos}"

    def render(self, conversation: Conversation) -> list[list[Segment]]:
        """Training view; see `Template.render`.

        Raises:
            UserError: the template refuses the conversation, or it cannot be told which part of the text is whose.
        """
        try:
            if _is_plain(conversation):
                return self._placeholders.samples(conversation.messages)
            return self._differences.samples(conversation, prompt=self.prompt)
        except UnmaskableError as reason:
            raise _refused(conversation, reason) from None

    def prompt(self, conversation: Conversation, *, thinking: bool | None = None) -> list[Segment]:
        """Generation view: the rendering with the template's generation prompt; see `Template.prompt`.

        ``thinking`` is what the template knows as ``enable_thinking``, if it knows it.
        """
        try:
            if thinking is None and _is_plain(conversation):
                return self._placeholders.prompt(conversation.messages)
            return self._differences.prompt(conversation, thinking=thinking)
        except UnmaskableError as reason:
            raise _refused(conversation, reason) from None

    def document(self, text: str) -> list[Segment]:
        """Behind what the tokenizer puts in front of any text, up to its end token; see `Template.document`."""
        if self._eos is None:
            raise UserError("tokenizer: names no end token (eos_token), so nothing says where a text ends; name one")
        return framed(text, prefix=self._prefix, end=self._eos)

    def thinking(self, answer: Message) -> bool | None:
        """The template's own default."""
        return None

    def parse(self, text: str, *, thinking: bool | None = None, tools: Known = ()) -> Message:
        """The text without what the template puts around every answer, reasoning in tags, calls as JSON in tags.

        See `Template.parse`. Other ways to write calls are not known, and stay text.
        """
        text = text.removeprefix(self._lead).removesuffix(self._trail)
        reasoning, rest = split(text, opened=self._opens_reasoning and thinking is not False)
        content, calls = (rest, ()) if tools is None else extract(rest, _json_call)
        return Message("assistant", _trimmed(content, reasoning, calls), reasoning=reasoning, tool_calls=calls)

    def settled(self, text: str, *, thinking: bool | None = None, tools: Known = ()) -> Message:
        """Up to a call that has begun; see `Template.settled`."""
        if text != self._lead and self._lead.startswith(text):
            return Message("assistant", "")
        text = without_beginning_of(text.removeprefix(self._lead), f"{self._trail}\0")
        reasoning, rest = thoughts.settled(text, opened=self._opens_reasoning and thinking is not False)
        said = closed(rest or "", tools=tools)
        content, calls = (said, ()) if tools is None else extract(said, _json_call)
        return Message("assistant", _trimmed(content, reasoning, calls).rstrip(), reasoning=reasoning, tool_calls=calls)

    def _text(self, conversation: Conversation, *, generation: bool, thinking: bool | None = None) -> str:
        """What the template makes of a conversation."""
        options: dict[str, Any] = {"tools": list(conversation.tools)} if conversation.tools else {}
        if thinking is not None:
            options["enable_thinking"] = thinking
        turns = [_turn(message) for message in conversation.messages]
        try:
            return str(self._hf.apply_chat_template(turns, tokenize=False, add_generation_prompt=generation, **options))
        except (jinja2.TemplateError, TypeError, ValueError, LookupError) as error:
            # templates are programs: what they raise on purpose is a TemplateError, the others are their mistakes
            raise UnmaskableError(f"it refuses the conversation: {error}") from error

    def _probe(self) -> tuple[str, str, tuple[str, ...]]:
        """Text in front of and behind every answer, and what ends them, from a conversation of the plainest kind.

        A template that cannot be masked still serves for generation; then only the tokenizer's end token is known.
        """
        stops = [self._eos] if self._eos else []
        try:
            learned = [segment for segment in self._placeholders.single(_PROBE[:2]) if segment.learn]
            lead, _, trail = "".join(segment.text for segment in learned).partition(_PROBE[1].content)
            joint = self.render(Conversation(_PROBE))
        except (UnmaskableError, UserError):
            return "", "", tuple(stops)
        for sample in [learned, *joint]:
            for segment, following in itertools.pairwise([*sample, Segment()]):
                if segment.control and segment.learn and not following.learn:
                    stops.append(segment.control)
        return lead, trail, tuple(dict.fromkeys(stops))

    def _opened(self) -> bool:
        """Whether the generation prompt ends with an opened reasoning."""
        try:
            return self._text(Conversation(_PROBE[:1]), generation=True).rstrip().endswith(OPEN)
        except UnmaskableError:
            return False


def _in_front(tokenizer: Tokenizer) -> list[str]:
    """The control tokens that the tokenizer puts in front of a text."""
    names = {token: name for name, token in tokenizer.controls.items()}
    around = [names[token] for token in tokenizer.hf("")["input_ids"] if token in names]
    return around[:-1] if around[-1:] == [tokenizer.hf.eos_token] else around


def _is_plain(conversation: Conversation) -> bool:
    """Whether there are texts only."""
    parts = (message.reasoning or message.tool_calls for message in conversation.messages)
    return not (conversation.tools or any(parts))


def _turn(message: Message) -> dict[str, Any]:
    """A turn as templates take it: OpenAI's keys, arguments as an object."""
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning is not None:
        turn["reasoning_content"] = message.reasoning
    if message.tool_calls:
        functions = ({"name": call.name, "arguments": dict(call.arguments)} for call in message.tool_calls)
        turn["tool_calls"] = [{"type": "function", "function": function} for function in functions]
    return turn


def _trimmed(content: str, reasoning: str | None, calls: Sequence[ToolCall]) -> str:
    """Content without the white space between it and its neighbours."""
    begun = content if reasoning is None else content.lstrip()
    return begun.rstrip() if reasoning is not None or calls else begun


def _json_call(text: str) -> ToolCall | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not (isinstance(value, dict) and isinstance(value.get("name"), str)):
        return None
    arguments = value.get("arguments", {})
    return ToolCall(value["name"], arguments) if isinstance(arguments, dict) else None


def _refused(conversation: Conversation, reason: UnmaskableError) -> UserError:
    where = f"{conversation.origin}: " if conversation.origin else ""
    return UserError(
        f"{where}the tokenizer's chat template cannot be used for this conversation: {reason}. "
        "Set template to one of this program's own, or correct the template or the row"
    )
