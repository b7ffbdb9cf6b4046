"""GLM-Z1-0414: GLM-4's role tokens; the generation prompt opens the reasoning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import final

from glm_lightning.templates import reasoning as thoughts
from glm_lightning.templates.base import Known, Tools
from glm_lightning.templates.dialogue import ROLE_TOKENS, Answer, Reasoning
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
from glm_lightning.templates.reasoning import CLOSE, split
from glm_lightning.types import Conversation, Message, Segment

_PREAMBLE = (
    "你是一个名为 ChatGLM 的人工智能助手。你是基于智谱 AI 公司训练的语言模型 GLM-4 模型开发的，"
    "你的任务是针对用户的问题和要求提供适当的答复和支持。\n\n# 可用工具"
)
_LEAD = Segment("\n<think>")


@final
class GLMZ1(Reasoning):
    """The format of GLM-Z1-9B-0414 and GLM-Z1-32B-0414.

    The generation prompt ends with `<think>`; the model goes on with a line break, its reasoning, `</think>` and the
    answer. The history has the answers alone. The official template deletes the reasoning of the row that is trained,
    too; here it is kept. An answer without reasoning has an empty one, and ``thinking=False`` (for which there is no
    official form) asks for that. System turns stand in front; texts lose the white space around them.
    """

    MODEL = "GLM-Z1"
    HOISTS = True

    def definitions(self, tools: Tools) -> list[Segment]:
        """A system turn with a section for each tool."""
        text = _PREAMBLE + "".join(f"\n{section(tool)}" for tool in tools)
        return [Segment(control=ROLE_TOKENS["system"]), *together("", text)]

    def turn(self, message: Message, *, after: Message | None, thinking: bool | None) -> list[Segment]:
        """Role token, newline and content."""
        content = message.content if message.role == "system" else message.content.strip()
        return [Segment(control=ROLE_TOKENS[message.role]), *together("", content)]

    def answer(self, message: Message, *, shown: bool) -> Answer:
        """Newline and content, and a block for each call; the last one with its reasoning."""
        message = replace(message, content=message.content.strip())
        said = blocks(message, text=together, arguments=as_json, continued=shown)
        if not shown:
            return Answer([], said)
        if not message.reasoning:
            return Answer([_LEAD], [Segment(f"\n{CLOSE}"), *said])
        reasoning = Segment(f"\n{message.reasoning.strip()}\n")
        if said[0].control:
            return Answer([_LEAD], [reasoning, Segment(CLOSE), *said])
        return Answer([_LEAD], [reasoning, Segment(CLOSE + said[0].text), *said[1:]])

    def lead(self, *, thinking: bool | None) -> list[Segment]:
        """The opened reasoning, or an empty one."""
        return [_LEAD, Segment(f"\n{CLOSE}")] if thinking is False else [_LEAD]

    def first_shown(self, messages: Sequence[Message]) -> int:
        """Only the last turn's."""
        return len(messages) - 1

    def forgets(self, messages: Sequence[Message]) -> bool:
        """Always: an answer in the history has not even an empty reasoning."""
        return True

    def faults(self, conversation: Conversation) -> list[str]:
        """Tools without names."""
        return unnamed(conversation.tools, model=self.MODEL)

    def thinking(self, answer: Message) -> bool | None:
        """The default: the model closes the reasoning itself, an empty one too."""
        return None

    def parse(self, text: str, *, thinking: bool | None = None, tools: Known = ()) -> Message:
        """Reasoning, content and calls; see `Template.parse`."""
        reasoning, rest = split(text, opened=thinking is not False)
        content, calls = read(rest, arguments=read_json, tools=tools)
        return Message("assistant", content.strip(), reasoning=reasoning, tool_calls=calls)

    def settled(self, text: str, *, thinking: bool | None = None, tools: Known = ()) -> Message:
        """Up to where calls may begin; see `Template.settled`."""
        reasoning, rest = thoughts.settled(text, opened=thinking is not False)
        content = settled(rest or "", arguments=read_json, begins=begins_json, tools=tools)
        return Message("assistant", content.strip(), reasoning=reasoning)
