"""GLM-Edge (1.5B, 4B): GLM-4's role tokens without `[gMASK]<sop>`."""

from __future__ import annotations

from typing import final

from glm_lightning.templates.base import Known, Tools
from glm_lightning.templates.dialogue import ROLE_TOKENS, Answer, Plain
from glm_lightning.templates.function_calls import together
from glm_lightning.types import Conversation, Message, Segment


@final
class GLMEdge(Plain):
    """The format of GLM-Edge-Chat as llama.cpp's tests of its template have it.

    No official template text was at hand: that nothing stands in front of the first role token, and that turns are
    joined as in GLM-4, is from there; the end tokens are GLM-4's. How tools are shown is not known, so they are
    refused.
    """

    MODEL = "GLM-Edge"
    PREFIX = ()

    def prepared(self, conversation: Conversation) -> Conversation:
        """As it is."""
        return conversation

    def definitions(self, tools: Tools) -> list[Segment]:
        """Nothing: tools are refused."""
        return []

    def turn(self, message: Message, *, after: Message | None, thinking: bool | None) -> list[Segment]:
        """Role token, newline and content."""
        return [Segment(control=ROLE_TOKENS[message.role]), *together("", message.content)]

    def answer(self, message: Message, *, shown: bool) -> Answer:
        """Newline and content."""
        return Answer([], together("", message.content))

    def tool_faults(self, conversation: Conversation) -> list[str]:
        """Any tool."""
        messages = conversation.messages
        if conversation.tools or any(message.tool_calls or message.role == "tool" for message in messages):
            return [
                f"how {self.MODEL} is shown tools and their results is not published; take them out of the row, "
                "or take GLM-4"
            ]
        return []

    def parse(self, text: str, *, thinking: bool | None = None, tools: Known = ()) -> Message:
        """The text without the newline that begins every answer; see `Template.parse`."""
        return Message("assistant", text.removeprefix("\n"))

    def settled(self, text: str, *, thinking: bool | None = None, tools: Known = ()) -> Message:
        """The same; see `Template.settled`."""
        return self.parse(text)
