"""GLM-4.7 and GLM-4.7-Flash: GLM-4.6's tags without line breaks; the generation prompt opens or skips the reasoning."""

from __future__ import annotations

from typing import final

from glm_lightning.templates.base import Known, Tools
from glm_lightning.templates.dialogue import ROLE_TOKENS, Answer, Recent
from glm_lightning.templates.reasoning import CLOSE, OPEN, extracted, settled, split
from glm_lightning.templates.tag_calls import closed, definitions, read, write
from glm_lightning.types import Message, Segment


@final
class GLM47(Recent):
    """The format of the published template of GLM-4.7.

    The generation prompt ends with `<think>`, or with `</think>` for ``thinking=False`` and in front of an answer
    without reasoning. The history keeps the reasoning of the answers behind the last question only (the template's
    ``clear_thinking=False`` is not offered). The official template has no end token; one is appended.
    """

    MODEL = "GLM-4.7"

    def definitions(self, tools: Tools) -> list[Segment]:
        """A system turn with the tools as JSON, and how to call them."""
        return [Segment(control=ROLE_TOKENS["system"]), Segment(definitions(tools, line=""))]

    def turn(self, message: Message, *, after: Message | None, thinking: bool | None) -> list[Segment]:
        """Role token and content; results in tags, under one role token if several follow each other."""
        if message.role != "tool":
            return [Segment(control=ROLE_TOKENS[message.role]), Segment(message.content)]
        result = Segment(f"<tool_response>{message.content}</tool_response>")
        follows = after is not None and after.role == "tool"
        return [result] if follows else [Segment(control=ROLE_TOKENS["tool"]), result]

    def answer(self, message: Message, *, shown: bool) -> Answer:
        """Reasoning, content, calls."""
        said = message.content.strip() + "".join(write(call, line="") for call in message.tool_calls)
        reasoning = (message.reasoning or "").strip() if shown else ""
        if reasoning:
            return Answer([Segment(OPEN)], [Segment(reasoning), Segment(f"{CLOSE}{said}")])
        return Answer([Segment(CLOSE)], [Segment(said)])

    def lead(self, *, thinking: bool | None) -> list[Segment]:
        """The opened reasoning, or a closed one."""
        return [Segment(CLOSE if thinking is False else OPEN)]

    def thinking(self, answer: Message) -> bool | None:
        """Whether the answer has reasoning."""
        return bool(extracted(answer).reasoning)

    def parse(self, text: str, *, thinking: bool | None = None, tools: Known = ()) -> Message:
        """Reasoning, content and calls; see `Template.parse`."""
        reasoning, rest = split(text, opened=thinking is not False)
        content, calls = read(rest, tools=tools)
        return Message("assistant", content.strip(), reasoning=reasoning, tool_calls=calls)

    def settled(self, text: str, *, thinking: bool | None = None, tools: Known = ()) -> Message:
        """Up to a call that has begun; see `Template.settled`."""
        reasoning, rest = settled(text, opened=thinking is not False)
        content, calls = read(closed(rest or "", tools=tools), tools=tools)
        return Message("assistant", content.strip(), reasoning=reasoning, tool_calls=calls)
