"""GLM-4.5, GLM-4.5-Air and GLM-4.6: reasoning in `<think>` tags, calls in `<tool_call>` tags, `/nothink`."""

from __future__ import annotations

from typing import final

from glm_lightning.templates.base import Known, Tools
from glm_lightning.templates.dialogue import ROLE_TOKENS, Answer, Recent, control_or_text
from glm_lightning.templates.reasoning import CLOSE, OPEN, settled, split
from glm_lightning.templates.tag_calls import closed, definitions, read, write
from glm_lightning.types import Message, Segment

_NOTHINK = "/nothink"


@final
class GLM45(Recent):
    """The format of the published template of GLM-4.6, which public copies give for GLM-4.5 too.

    The model writes its reasoning itself, `<think></think>` if it has none. The history keeps the reasoning of the
    answers behind the last question only. ``thinking=False`` puts `/nothink` behind every question and an empty
    reasoning into the generation prompt. The official template has no end token; one is appended.
    """

    MODEL = "GLM-4.5"

    def definitions(self, tools: Tools) -> list[Segment]:
        """A system turn with the tools as JSON, and how to call them."""
        return [Segment(control=ROLE_TOKENS["system"]), Segment(definitions(tools, line="\n"))]

    def turn(self, message: Message, *, after: Message | None, thinking: bool | None) -> list[Segment]:
        """Role token, newline and content; results in tags, under one role token if several follow each other."""
        if message.role == "tool":
            result = Segment(f"\n<tool_response>\n{message.content}\n</tool_response>")
            follows = after is not None and after.role == "tool"
            return [result] if follows else [Segment(control=ROLE_TOKENS["tool"]), result]
        role = Segment(control=ROLE_TOKENS[message.role])
        if message.role == "user" and thinking is False:
            switch = control_or_text(_NOTHINK, self.controls)
            return [role, Segment(f"\n{message.content.removesuffix(_NOTHINK)}"), switch]
        return [role, Segment(f"\n{message.content}")]

    def answer(self, message: Message, *, shown: bool) -> Answer:
        """Reasoning, content, calls."""
        calls = [write(call, line="\n") for call in message.tool_calls]
        said = "".join(f"\n{text}" for text in (message.content.strip(), *calls) if text)
        reasoning = (message.reasoning or "").strip() if shown else ""
        if reasoning:
            return Answer([], [Segment(f"\n{OPEN}{reasoning}"), Segment(f"{CLOSE}{said}")])
        return Answer([], [Segment(f"\n{OPEN}{CLOSE}"), Segment(said)])

    def lead(self, *, thinking: bool | None) -> list[Segment]:
        """Nothing, or an empty reasoning."""
        return [Segment(f"\n{OPEN}{CLOSE}")] if thinking is False else []

    def thinking(self, answer: Message) -> bool | None:
        """The default: it leaves the choice to the model."""
        return None

    def parse(self, text: str, *, thinking: bool | None = None, tools: Known = ()) -> Message:
        """Reasoning, content and calls; see `Template.parse`."""
        reasoning, rest = split(text, opened=False)
        content, calls = read(rest, tools=tools)
        return Message("assistant", content.strip(), reasoning=reasoning, tool_calls=calls)

    def settled(self, text: str, *, thinking: bool | None = None, tools: Known = ()) -> Message:
        """Up to a call that has begun; see `Template.settled`."""
        reasoning, rest = settled(text, opened=False)
        content, calls = read(closed(rest or "", tools=tools), tools=tools)
        return Message("assistant", content.strip(), reasoning=reasoning, tool_calls=calls)
