"""GLM-4-0414 (9B, 32B): GLM-4's role tokens, `# 可用工具` without an introduction, system turns in front."""

from __future__ import annotations

from typing import final

from glm_lightning.templates.base import Known, Tools
from glm_lightning.templates.dialogue import ROLE_TOKENS, Answer, Plain
from glm_lightning.templates.function_calls import (
    as_json,
    begins_json,
    blocks,
    read,
    read_json,
    section,
    settled,
    together,
    unnamed,
)
from glm_lightning.types import Conversation, Message, Segment


@final
class GLM40414(Plain):
    """The format of GLM-4-9B-0414 and GLM-4-32B-0414 as far as it is known.

    No full official template text was at hand; from public quotations of it: all system turns stand in front; tools in
    a system turn that begins with `# 可用工具`; the generation prompt is `<|assistant|>`. A newline and the content are
    encoded as one text. In a call the quoted template has a space behind the function's name; the model itself writes
    none, and so it is here.
    """

    MODEL = "GLM-4-0414"
    HOISTS = True

    def prepared(self, conversation: Conversation) -> Conversation:
        """As it is."""
        return conversation

    def definitions(self, tools: Tools) -> list[Segment]:
        """A system turn with a section for each tool."""
        text = "# 可用工具" + "".join(f"\n\n{section(tool)}" for tool in tools)
        return [Segment(control=ROLE_TOKENS["system"]), *together("", text)]

    def turn(self, message: Message, *, after: Message | None, thinking: bool | None) -> list[Segment]:
        """Role token, newline and content."""
        return [Segment(control=ROLE_TOKENS[message.role]), *together("", message.content)]

    def answer(self, message: Message, *, shown: bool) -> Answer:
        """Newline and content, and a block for each call."""
        return Answer([], blocks(message, text=together, arguments=as_json))

    def tool_faults(self, conversation: Conversation) -> list[str]:
        """Tools without names."""
        return unnamed(conversation.tools, model=self.MODEL)

    def parse(self, text: str, *, thinking: bool | None = None, tools: Known = ()) -> Message:
        """Content and calls; see `Template.parse`."""
        content, calls = read(text, arguments=read_json, tools=tools)
        return Message("assistant", content, tool_calls=calls)

    def settled(self, text: str, *, thinking: bool | None = None, tools: Known = ()) -> Message:
        """Up to where calls may begin; see `Template.settled`."""
        return Message("assistant", settled(text, arguments=read_json, begins=begins_json, tools=tools))
