"""GLM-Z1, GLM-4.6 and GLM-4.7: texts as the published templates render them, golden and random."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from official_templates import FILES, SHARED, find, published, text, with_roles

from glm_lightning.types import Conversation, Message, ToolCall

pytestmark = [pytest.mark.shared, pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared")]


def goldens() -> list[Any]:
    if not SHARED.is_dir():
        return []
    found = []
    for name, file in (("glm_z1", "glm-z1-0414"), ("glm4_5", "glm-4.6"), ("glm4_7", "glm-4.7")):
        golden = json.loads((SHARED / f"golden/templates/{file}.json").read_text(encoding="utf-8"))
        for row in golden["conversations"]:
            for number, rendering in enumerate(row["renderings"]):
                found.append(pytest.param(name, row, rendering, id=f"{name}-{row['id']}-{number}"))
    return found


@pytest.mark.parametrize(("name", "row", "rendering"), goldens())
def test_golden_renderings(name: str, row: dict[str, Any], rendering: dict[str, Any]) -> None:
    options = rendering["kwargs"]
    conversation = with_roles({**row, "messages": row["messages"][: rendering["count"]]})
    template = find(name)
    if rendering["add_generation_prompt"]:
        if options.get("clear_thinking") is False and row["id"] != "tool-call":
            return  # reasoning kept in the whole history is not offered
        assert text(template.prompt(conversation, thinking=options.get("enable_thinking"))) == rendering["text"]
    elif not options:
        ours = text(template.render(conversation)[-1])
        assert ours == rendering["text"] + "<|user|>" or name == "glm_z1"
        if name == "glm_z1":  # the official rendering of a row deletes what is to be learned
            head, _, answer = rendering["text"].rpartition("<|assistant|>\n")
            assert ours.startswith(f"{head}<|assistant|>\n<think>")
            assert ours.endswith(f"</think>\n{answer}<|user|>")


WORD = st.text(alphabet="ab 你，.", min_size=1, max_size=8).filter(str.strip)
VALUE = st.one_of(WORD, st.integers(), st.booleans(), st.none(), st.lists(WORD, max_size=2))
CALL = st.builds(
    ToolCall, st.sampled_from(["find", "get_time"]), st.dictionaries(WORD.map(str.strip), VALUE, max_size=3)
)
TOOL = {"type": "function", "function": {"name": "find", "description": "找 <b>", "parameters": {"type": "object"}}}


@st.composite
def conversations(draw: st.DrawFn, name: str) -> Conversation:
    messages = [Message("system", draw(WORD))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages.append(Message("user", draw(WORD)))
        for _ in range(draw(st.integers(0, 2))):
            calls = tuple(draw(st.lists(CALL, min_size=1, max_size=2)))
            # content in front of a call is two turns to Z1's template, without the line break between them
            content = draw(st.sampled_from(["", "b a"])) if name != "glm_z1" else ""
            messages.append(Message("assistant", content, reasoning=draw(st.none() | WORD), tool_calls=calls))
            messages += [Message("tool", draw(WORD)) for _ in calls]
        messages.append(Message("assistant", draw(WORD), reasoning=draw(st.none() | WORD)))
    return Conversation(tuple(messages), tools=draw(st.sampled_from([(), (TOOL,), (TOOL, TOOL)])))


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_random_prompts_are_those_of_the_published_template(name: str, data: st.DataObject) -> None:
    template, conversation = find(name), data.draw(conversations(name))
    for i, message in enumerate(conversation.messages):
        if message.role != "assistant":
            continue
        asked = Conversation(conversation.messages[:i], tools=conversation.tools)
        assert text(template.prompt(asked)) == published(name, asked, generation=True)
        if name != "glm_z1":
            off = published(name, asked, generation=True, enable_thinking=False)
            assert text(template.prompt(asked, thinking=False)) == off


@pytest.mark.parametrize("name", ["glm4_5", "glm4_7"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_random_samples_are_those_of_the_published_template_and_the_end_token(name: str, data: st.DataObject) -> None:
    conversation = data.draw(conversations(name))
    assert text(find(name).render(conversation)[-1]) == published(name, conversation, generation=False) + "<|user|>"
