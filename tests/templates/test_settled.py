"""What is shown while a text is generated is never taken back, and nothing is held back for long."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from generations import TOKENS
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_parsing import CODE, JOINED, LINES, TAGS, WEATHER
from test_template_properties import CHATML, JINJA_TOKENS, NAMES

from glm_lightning import templates
from glm_lightning.templates import Template
from glm_lightning.tokenizers import Tokenizer
from glm_lightning.types import Message

JSON_CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "北京"}}\n</tool_call>'
WHOLE = (CODE, LINES, TAGS, JOINED, JSON_CALL, "<think>", "</think>", "weather\n", "other\n", "{}", '{"a": "}"}', "```")
WORDS = ("你好", "a", " ", "\n", ",", "!", "{", "<", "weather", "rain and wind", "\N{REPLACEMENT CHARACTER}")
TEXTS = st.lists(st.sampled_from((*WHOLE, *WHOLE, *WORDS)), max_size=7).map("".join)
SHOWN = st.sampled_from((None, (), (WEATHER,)))


@pytest.fixture(scope="module")
def find(make_tokenizer: Callable[..., Tokenizer]) -> Callable[[str], Template]:
    kept: dict[str, Template] = {}

    def make(name: str) -> Template:
        if name not in kept:
            own = CHATML if name == "jinja" else None
            tokens = JINJA_TOKENS if own else TOKENS.get(name, TOKENS["glm4"])
            tokenizer = make_tokenizer(tokens, eos="<|im_end|>" if own else None, chat_template=own)
            kept[name] = templates.find(name, tokenizer, "glm")
        return kept[name]

    return make


def is_beginning(part: Message, whole: Message) -> bool:
    return (
        whole.content.startswith(part.content)
        and (whole.reasoning or "").startswith(part.reasoning or "")
        and whole.tool_calls[: len(part.tool_calls)] == part.tool_calls
    )


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=150, deadline=None)
@given(text=TEXTS, cut=TEXTS, tools=SHOWN, thinking=st.sampled_from((None, False)))
@example(text="a", cut=f"\n{LINES}", tools=(WEATHER,), thinking=None)
@example(text="</think>a", cut=f"\n{TAGS}\nb", tools=(), thinking=None)
def test_what_is_settled_stays(find, name, text, cut, tools, thinking):
    template, whole = find(name), text + cut
    said = template.parse(whole, thinking=thinking, tools=tools)
    for end in range(len(whole) + 1):
        part = template.settled(whole[:end], thinking=thinking, tools=tools)
        assert is_beginning(part, said), (whole[:end], part, said)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tools", [None, [WEATHER]])
def test_plain_words_are_shown_at_once(find, name, tools):
    text = (
        "\n<think>one two</think>\n你好 some rain\nwe had today"
        if name.startswith("glm4_5")
        else "</think>" * (name in ("glm_z1", "glm4_7")) + "你好 some rain\nwe had today"
    )
    part = find(name).settled(text, tools=tools)
    assert part.content == "你好 some rain\nwe had today"


@pytest.mark.parametrize("name", ["glm_z1", "glm4_5", "glm4_7", "jinja"])
def test_reasoning_is_shown_as_it_grows(find, name):
    opening = "<think>" * (name in ("glm4_5", "jinja"))
    assert find(name).settled(f"{opening}one two three").reasoning == "one two three"
    assert find(name).settled(f"{opening}one two three</th").reasoning == "one two three"


@pytest.mark.parametrize(
    ("name", "call"), [("glm4", LINES), ("glm4_0414", LINES), ("chatglm3", CODE), ("glm4_5", f"</think>{TAGS}")]
)
def test_nothing_of_a_call_is_shown_as_content(find, name, call):
    opening = "<think>" * (name == "glm4_5")
    shown = {find(name).settled(opening + call[:end], tools=[WEATHER]).content for end in range(len(call))}
    assert shown == {""}


@pytest.mark.parametrize("name", ["glm4", "chatglm3", "glm4_5", "glm4_7", "jinja"])
def test_without_tools_no_call_is_looked_for(find, name):
    text = {"glm4": LINES, "chatglm3": CODE, "jinja": JSON_CALL}.get(name, f"<think></think>{TAGS}")
    said = find(name).parse(text, tools=None)
    assert not said.tool_calls
    assert "weather" in said.content
    assert find(name).parse(text).tool_calls


@pytest.mark.parametrize("name", ["glm4_5", "glm4_7", "jinja"])
def test_a_malformed_call_leaves_the_others_alone(find, name):
    call = JSON_CALL if name == "jinja" else TAGS
    said = find(name).parse(f"<think></think>{call}<tool_call><</tool_call>")
    assert [each.name for each in said.tool_calls] == ["weather"]
    assert said.content == "<tool_call><</tool_call>"
