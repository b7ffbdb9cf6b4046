"""ChatGLM3-6B: `[gMASK]sop<|user|>\\n...<|assistant|>\\n...`, tools in the system turn, calls as Python."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import replace
from typing import Any, final

from glm_lightning.templates.base import Known, Tools
from glm_lightning.templates.dialogue import ROLE_TOKENS, Answer, Plain
from glm_lightning.templates.function_calls import apart, blocks, function, read, settled, unnamed
from glm_lightning.types import Conversation, Message, Segment, ToolCall

_WITH_TOOLS = "Answer the following questions as best as you can. You have access to the following tools:"
_FENCE = "```python\ntool_call("
_CODE = re.compile(r"\s*```python\n(tool_call\(.*?\))\n```", re.DOTALL)


@final
class ChatGLM3(Plain):
    """The format of the official tokenizer (`build_single_message`, `build_chat_input`) and of `finetune_hf.py`.

    A role token is followed by metadata and a newline, encoded on their own, then by the content. The metadata of an
    answer is the name of the tool it calls; the call is Python: ``tool_call(city='北京')`` in a code fence. Tools stand
    in the system turn behind its text; without a text, the official one is put there. An answer ends with the role
    token that follows, the last one with `</s>`.

    The official mask counts tool results as learned; here only what the model generates is.
    """

    MODEL = "ChatGLM3"
    PREFIX = ("[gMASK]", "sop")
    STOPS = ("</s>", "<|user|>", "<|observation|>")
    END = "</s>"

    def prepared(self, conversation: Conversation) -> Conversation:
        """With the tools in the system turn."""
        if not conversation.tools:
            return conversation
        messages = conversation.messages
        first, rest = (messages[0], messages[1:]) if messages[0].role == "system" else (Message("system", ""), messages)
        tools = json.dumps([function(tool) for tool in conversation.tools], ensure_ascii=False, indent=4)
        system = replace(first, content=f"{first.content if first.content.strip() else _WITH_TOOLS}\n{tools}")
        return replace(conversation, messages=(system, *rest), tools=())

    def definitions(self, tools: Tools) -> list[Segment]:
        """Nothing: they stand in the system turn."""
        return []

    def turn(self, message: Message, *, after: Message | None, thinking: bool | None) -> list[Segment]:
        """Role token, newline, content."""
        return [Segment(control=ROLE_TOKENS[message.role]), *apart("", message.content)]

    def answer(self, message: Message, *, shown: bool) -> Answer:
        """Newline and content, and a block for each call."""
        return Answer([], blocks(message, text=apart, arguments=_python))

    def tool_faults(self, conversation: Conversation) -> list[str]:
        """Tools without names, and arguments that are no names in Python."""
        calls = [call for message in conversation.messages for call in message.tool_calls]
        return unnamed(conversation.tools, model=self.MODEL) + [
            f"{self.MODEL} writes calls as Python, and the argument {name!r} of {call.name} is no name there; rename it"
            for call in calls
            for name in call.arguments
            if not name.isidentifier()
        ]

    def parse(self, text: str, *, thinking: bool | None = None, tools: Known = ()) -> Message:
        """Content and calls; see `Template.parse`."""
        content, calls = read(text.lstrip(" "), arguments=_read_python, tools=tools, anywhere=True)
        return Message("assistant", content.strip(), tool_calls=calls)

    def settled(self, text: str, *, thinking: bool | None = None, tools: Known = ()) -> Message:
        """Up to where calls may begin; see `Template.settled`."""
        said = text.lstrip(" ")
        content = settled(said, arguments=_read_python, begins=_begins_python, tools=tools, anywhere=True)
        return Message("assistant", content.strip())


def _python(call: ToolCall) -> str:
    arguments = ", ".join(f"{name}={value!r}" for name, value in call.arguments.items())
    return f"```python\ntool_call({arguments})\n```"


def _begins_python(text: str) -> bool:
    code = text.lstrip()
    return code.startswith(_FENCE) or _FENCE.startswith(code)


def _read_python(text: str, position: int) -> tuple[dict[str, Any], int] | None:
    found = _CODE.match(text, position)
    if found is None:
        return None
    try:
        call = ast.parse(found[1], mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            return None
        arguments = {str(each.arg): ast.literal_eval(each.value) for each in call.keywords if each.arg}
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None
    return (arguments, found.end()) if len(arguments) == len(call.keywords) else None
