"""The official code's golden conversations, and the official tokenizer files behind names of control tokens."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jinja2

from glm_lightning import templates, tokenizers
from glm_lightning.templates import Template
from glm_lightning.templates.dialogue import ROLE_TOKENS
from glm_lightning.tokenizers import Tokenizer
from glm_lightning.types import Conversation, Message, Segment, ToolCall

SHARED = Path(__file__).resolve().parents[2] / "../shared"


def golden(generation: str) -> dict[str, Any]:
    return json.loads((SHARED / f"golden/tokenizers/tokenizer_{generation}.json").read_text(encoding="utf-8"))


def rows(generation: str) -> list[dict[str, Any]]:
    """The golden conversations; none where there is no ../shared, for tests are collected there, too."""
    return golden(generation)["conversations"] if SHARED.is_dir() else []


@functools.cache
def words(generation: str) -> Tokenizer:
    """The official tokenizer; ChatGLM2 and ChatGLM3 share a file."""
    folder = {"chatglm": "chatglm-6b", "glm4": "glm-4-9b-chat"}.get(generation, "chatglm3-6b")
    return tokenizers.load(SHARED / "tokenizers" / folder)


def ids_and_mask(tokenizer: Tokenizer, segments: Sequence[Segment]) -> tuple[list[int], list[int]]:
    ids, mask = [], []
    for segment in segments:
        piece = [tokenizer.control_id(segment.control)] if segment.control else tokenizer.encode([segment.text])[0]
        ids += piece
        mask += [int(segment.learn)] * len(piece)
    return ids, mask


def with_history(row: Mapping[str, Any]) -> Conversation:
    """A row of ChatGLM-6B or ChatGLM2; the official trainer learns its last answer alone."""
    turns = []
    for question, answer in row["history"]:
        turns += [Message("user", question), Message("assistant", answer, learn=False)]
    return Conversation((*turns, Message("user", row["query"]), Message("assistant", row["answer"])))


def with_roles(row: Mapping[str, Any]) -> Conversation:
    """A row of ChatGLM3, GLM-4, Z1, or OpenAI's messages."""
    tools = [tool for message in row["messages"] for tool in message.get("tools", ())] or row.get("tools", ())
    return Conversation(tuple(map(_message, row["messages"])), tools=tuple(tools))


def _message(message: Mapping[str, Any]) -> Message:
    if name := message.get("metadata"):
        return Message("assistant", "", tool_calls=(ToolCall(name, _arguments(message["content"])),))
    functions = [call["function"] for call in message.get("tool_calls", ())]
    calls = tuple(ToolCall(each["name"], each["arguments"]) for each in functions)
    role = {"observation": "tool"}.get(message["role"], message["role"])
    return Message(role, message["content"], reasoning=message.get("reasoning_content"), tool_calls=calls)


def _arguments(written: str) -> dict[str, Any]:
    """Of a call as ChatGLM3 (Python) or Z1 (JSON) writes it."""
    if not written.startswith("```python\n"):
        return json.loads(written)
    code = written.removeprefix("```python\n").removesuffix("\n```")
    return eval(code, {"tool_call": dict})


CONTROLS = ("[gMASK]", "<sop>", *ROLE_TOKENS.values(), "<|endoftext|>", "/nothink")
FILES = {"glm_z1": "GLM-Z1-0414", "glm4_5": "GLM-4.6", "glm4_7": "GLM-4.7"}


def find(name: str) -> Template:
    names: Any = SimpleNamespace(controls={control: i for i, control in enumerate(CONTROLS)})
    return templates.find(name, names, "glm4_moe")


def text(segments: Sequence[Segment]) -> str:
    return "".join(segment.control or segment.text for segment in segments)


@functools.cache
def compiled(name: str) -> jinja2.Template:
    """By jinja2 alone, with the settings that transformers gives it."""
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value, ensure_ascii=False, indent=None: json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent
    )
    return environment.from_string((SHARED / f"templates/{FILES[name]}.jinja").read_text(encoding="utf-8"))


def published(name: str, conversation: Conversation, *, generation: bool, **options: bool) -> str:
    messages = [turn for message in conversation.messages for turn in as_published(name, message)]
    tools = list(conversation.tools) or None
    return compiled(name).render(messages=messages, tools=tools, add_generation_prompt=generation, **options)


def as_published(name: str, message: Message) -> list[dict[str, Any]]:
    if name != "glm_z1":
        turn: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.reasoning is not None:
            turn["reasoning_content"] = message.reasoning
        functions = [{"name": call.name, "arguments": call.arguments} for call in message.tool_calls]
        return [turn | ({"tool_calls": [{"function": each} for each in functions]} if functions else {})]
    role = {"tool": "observation"}.get(message.role, message.role)
    turns = [{"role": role, "content": message.content}] if message.content or not message.tool_calls else []
    return turns + [
        {"role": role, "metadata": call.name, "content": json.dumps(call.arguments, ensure_ascii=False)}
        for call in message.tool_calls
    ]
