"""The chat templates for transformers give, through its own tokenizers, the ids of ours."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
import pytest
from generations import TOKENS
from hypothesis import given, settings
from hypothesis import strategies as st
from official_rules import write
from official_templates import SHARED, ids_and_mask, rows, with_history, with_roles, words
from random_conversations import NAMES, TOOL, WORDS, conversations
from transformers import AutoTokenizer

from glm_lightning import templates, tokenizers
from glm_lightning.export.description import write_chat_template
from glm_lightning.templates import Template
from glm_lightning.tokenizers import Tokenizer
from glm_lightning.types import Conversation, Message

OWN = tuple(name for name in NAMES if name != "jinja")

Words = tuple[Any, Tokenizer, Template]
"""A tokenizer as plain transformers loads it, and ours."""


def as_openai(message: Message) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning is not None:
        turn["reasoning_content"] = message.reasoning
    if message.tool_calls:
        calls = [{"name": call.name, "arguments": dict(call.arguments)} for call in message.tool_calls]
        turn["tool_calls"] = [{"type": "function", "function": call} for call in calls]
    return turn


def plain_ids(hf: Any, conversation: Conversation, *, prompt: bool, **options: Any) -> list[int]:
    messages = [as_openai(message) for message in conversation.messages]
    tools = [dict(tool) for tool in conversation.tools] or None
    given: Any = hf.apply_chat_template(
        messages, tools=tools, add_generation_prompt=prompt, return_dict=True, **options
    )
    return list(given["input_ids"])


def assert_same_ids(words: Words, conversation: Conversation) -> None:
    """The conversation up to each answer as a prompt, and all of it as it is trained."""
    hf, tokenizer, template = words
    for i, message in enumerate(conversation.messages):
        if message.role == "assistant":
            asked = replace(conversation, messages=conversation.messages[:i])
            expected, _ = ids_and_mask(tokenizer, template.prompt(asked))
            assert plain_ids(hf, asked, prompt=True) == expected
    if conversation.messages[-1].role == "assistant":
        last = replace(conversation.messages[-1], learn=None)
        whole = replace(conversation, messages=(*conversation.messages[:-1], last))
        expected, _ = ids_and_mask(tokenizer, template.render(whole)[-1])
        assert plain_ids(hf, whole, prompt=False) == expected


@pytest.fixture(scope="module")
def tiny(make_tokenizer: Callable[..., Tokenizer], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Words]:
    @functools.cache
    def make(name: str) -> Words:
        tokenizer = make_tokenizer(TOKENS.get(name, TOKENS["glm4"]), eos=None)
        return loaded(tokenizer, name, tmp_path_factory.mktemp(name))

    return make


def loaded(tokenizer: Tokenizer, name: str, folder: Path) -> Words:
    template = templates.find(name, tokenizer, "glm")
    folder.mkdir(exist_ok=True)
    tokenizer.save(folder)
    write_chat_template(template, folder)
    return AutoTokenizer.from_pretrained(folder), tokenizer, template


@pytest.mark.parametrize("name", [name for name in OWN if name not in ("chatglm2", "chatglm3")])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_conversation(tiny: Callable[[str], Words], name: str, data: st.DataObject) -> None:
    assert_same_ids(tiny(name), data.draw(conversations(name, WORDS)))


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Words]:
    """The official files of a generation as they are turned into those of transformers, tiny."""

    @functools.cache
    def make(name: str) -> Words:
        folder = tmp_path_factory.mktemp(f"official-{name}")
        write(folder, name)
        return loaded(tokenizers.load(folder), name, folder / "export")

    return make


@pytest.mark.parametrize("name", ["chatglm", "chatglm2", "chatglm3", "glm4"])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_conversation_through_converted_files(
    release: Callable[[str], Words], name: str, data: st.DataObject
) -> None:
    assert_same_ids(release(name), data.draw(conversations(name, WORDS)))


@pytest.mark.parametrize("name", ["chatglm3", "glm4"])
def test_texts_that_begin_with_blanks(release: Callable[[str], Words], name: str) -> None:
    for text in (" a", "  def", "\ta", "你好\n", " "):
        assert_same_ids(release(name), Conversation((Message("user", text), Message("assistant", text))))


@pytest.mark.parametrize("name", ["glm_z1", "glm4_5", "glm4_7"])
def test_reasoning_can_be_switched_off(tiny: Callable[[str], Words], name: str) -> None:
    hf, tokenizer, template = tiny(name)
    asked = Conversation((Message("user", "1+1?"), Message("assistant", "2"), Message("user", "2+2? /nothink")))
    expected, _ = ids_and_mask(tokenizer, template.prompt(asked, thinking=False))
    assert plain_ids(hf, asked, prompt=True, enable_thinking=False) == expected
    assert plain_ids(hf, asked, prompt=True) != expected


@pytest.mark.parametrize("name", ["glm_z1", "glm4_5", "glm4_7"])
def test_reasoning_inside_a_content_is_found(tiny: Callable[[str], Words], name: str) -> None:
    inside = "\n<think>\n 1 and 1 \n</think>\n\n2 "
    rows = [Message("user", "1+1?"), Message("assistant", inside), Message("user", "?"), Message("assistant", inside)]
    assert_same_ids(tiny(name), Conversation(tuple(rows)))


@pytest.mark.parametrize("name", OWN)
def test_contents_in_parts_and_arguments_as_text(tiny: Callable[[str], Words], name: str) -> None:
    """As servers hand them on: both are OpenAI's forms."""
    hf, _, _ = tiny(name)
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    whole = [{"role": "user", "content": "ab"}]
    texts = [hf.apply_chat_template(m, tokenize=False, add_generation_prompt=True) for m in (parts, whole)]
    assert texts[0] == texts[1]
    if name in ("chatglm", "chatglm2", "glm_edge"):
        return
    call = {"type": "function", "function": {"name": "find", "arguments": '{"a": "x"}'}}
    called = [*whole, {"role": "assistant", "content": None, "tool_calls": [call]}]
    if name in ("glm4", "glm4_0414", "glm_z1"):
        assert 'find\n{"a": "x"}' in hf.apply_chat_template(called, tokenize=False)
    else:
        with pytest.raises(jinja2.TemplateError, match="must be an object"):
            hf.apply_chat_template(called, tokenize=False)


@pytest.mark.parametrize(
    ("name", "messages", "tools", "message"),
    [
        ("chatglm", [{"role": "system", "content": "Be brief."}], None, "no system role"),
        ("chatglm2", [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}], None, "in turn"),
        ("chatglm2", [{"role": "user", "content": "a"}], [TOOL], "knows no tools"),
        ("glm_edge", [{"role": "user", "content": "a"}], [TOOL], "not published"),
        ("glm4", [{"role": "assistant", "content": "a", "reasoning_content": "b"}], None, "does not reason"),
    ],
)
def test_what_a_generation_does_not_know_is_refused(
    tiny: Callable[[str], Words], name: str, messages: list[dict[str, Any]], tools: Any, message: str
) -> None:
    with pytest.raises(jinja2.TemplateError, match=message):
        tiny(name)[0].apply_chat_template(messages, tools=tools, tokenize=False)


@pytest.mark.parametrize("name", OWN)
def test_an_exported_folder_is_still_recognised(tiny: Callable[[str], Words], name: str, tmp_path: Path) -> None:
    """Also by what it holds alone, where the generations cannot be told apart by anything but their templates."""
    _, tokenizer, template = tiny(name)
    tokenizer.save(tmp_path)
    write_chat_template(template, tmp_path)
    kind = {"glm4_0414": "glm4", "glm_z1": "glm4", "glm4_5": "glm4_moe", "glm4_7": "glm4_moe"}.get(name)
    if kind is not None:
        assert templates.find("auto", tokenizers.load(tmp_path), kind).name == name


@functools.cache
def official(generation: str, folder: Path) -> Any:
    """The official file of a generation as it is turned into transformers' own: this takes seconds."""
    words(generation).save(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared")
@pytest.mark.parametrize("name", ["chatglm", "chatglm2", "chatglm3", "glm4"])
def test_the_official_files(name: str, tmp_path: Path) -> None:
    """The official conversations, and rows of real data; but for texts that spell control tokens.

    And but for a line break in front of a text, which melts into the one before it in GLM-4, as it does in the chat
    template of its makers.
    """
    tmp_path.joinpath("files").mkdir()
    tokenizer = words(name)
    template = templates.find(name, tokenizer, "glm")
    hf = official(name, tmp_path / "files")
    hf.chat_template = template.chat_template
    made = hf, tokenizer, template
    read = with_history if name in ("chatglm", "chatglm2") else with_roles
    plain = [row for row in rows(name) if row["kind"] != "special"]
    assert len(plain) >= 7
    for row in plain:
        assert_same_ids(made, read(row))
    for row in json.loads((SHARED / "data/chat/oaast_sft_zh.json").read_text(encoding="utf-8"))[:40]:
        turns = [turn for pair in row.get("history") or [] for turn in pair] + [row["instruction"], row["output"]]
        roles = ("user", "assistant")
        assert_same_ids(made, Conversation(tuple(Message(roles[i % 2], text) for i, text in enumerate(turns))))
    broken = Conversation((Message("user", "\n你好"),))
    same = plain_ids(hf, broken, prompt=True) == ids_and_mask(tokenizer, template.prompt(broken))[0]
    assert same == (name != "glm4")
