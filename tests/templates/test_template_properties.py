"""What holds of every template, over random conversations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from generations import TOKENS
from hypothesis import given, settings
from hypothesis import strategies as st
from random_conversations import CHATML, JINJA_TOKENS, NAMES, WORDS, conversations

from glm_lightning import templates
from glm_lightning.templates import Template
from glm_lightning.tokenizers import Tokenizer
from glm_lightning.types import Conversation, Message, Segment


@pytest.fixture(scope="module")
def made(make_tokenizer: Callable[..., Tokenizer]) -> Callable[[str], tuple[Tokenizer, Template]]:
    kept: dict[str, tuple[Tokenizer, Template]] = {}

    def make(name: str) -> tuple[Tokenizer, Template]:
        if name not in kept:
            own = CHATML if name == "jinja" else None
            tokens = JINJA_TOKENS if own else TOKENS.get(name, TOKENS["glm4"])
            tokenizer = make_tokenizer(tokens, eos="<|im_end|>" if own else None, chat_template=own)
            kept[name] = tokenizer, templates.find(name, tokenizer, "glm")
        return kept[name]

    return make


Made = Callable[[str], tuple[Tokenizer, Template]]


def ids_of(tokenizer: Tokenizer, segments: Sequence[Segment]) -> list[int]:
    texts = iter(tokenizer.encode([s.text for s in segments if s.control is None]))
    return [i for s in segments for i in ([tokenizer.control_id(s.control)] if s.control else next(texts))]


def answers(conversation: Conversation) -> list[int]:
    return [i for i, message in enumerate(conversation.messages) if message.role == "assistant"]


def samples_by_answer(template: Template, conversation: Conversation) -> dict[int, list[Segment]]:
    samples = template.render(conversation)
    learned = [i for i in answers(conversation) if conversation.messages[i].learned]
    if len(samples) == 1:
        return dict.fromkeys(learned, samples[0])
    return dict(zip(learned, samples, strict=True))


def asked(template: Template, conversation: Conversation, i: int) -> list[Segment]:
    before = Conversation(conversation.messages[:i], tools=conversation.tools)
    return template.prompt(before, thinking=template.thinking(conversation.messages[i]))


def generated(template: Template, sample: Sequence[Segment], prompt: Sequence[Segment]) -> list[Segment]:
    """What is learned right behind a prompt, up to the token that stops generation."""
    said: list[Segment] = []
    for segment in sample[len(prompt) :]:
        said.append(segment)
        if segment.control in template.stop_tokens:
            break
    return said


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_what_follows_the_generation_view_is_learned_and_nothing_else(
    made: Made, name: str, data: st.DataObject
) -> None:
    tokenizer, template = made(name)
    conversation = data.draw(conversations(name))
    learned: dict[int, set[int]] = {}
    by_answer = samples_by_answer(template, conversation)
    for i, sample in by_answer.items():
        prompt = asked(template, conversation, i)
        assert [(s.text, s.control) for s in sample[: len(prompt)]] == [(s.text, s.control) for s in prompt]
        assert ids_of(tokenizer, sample)[: len(ids_of(tokenizer, prompt))] == ids_of(tokenizer, prompt)
        assert not any(segment.learn for segment in prompt)
        said = generated(template, sample, prompt)
        assert said[-1].control in template.stop_tokens
        assert all(segment.learn for segment in said)
        learned.setdefault(id(sample), set()).update(range(len(prompt), len(prompt) + len(said)))
        if name == "chatglm":
            learned[id(sample)].add(len(prompt) - 1)  # <sop>, as in the official training
    for sample in template.render(conversation):
        twin = next(each for each in by_answer.values() if each == sample)
        assert {n for n, segment in enumerate(sample) if segment.learn} == learned[id(twin)]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_what_is_generated_says_the_answer(made: Made, name: str, data: st.DataObject) -> None:
    _, template = made(name)
    conversation = data.draw(conversations(name, WORDS.filter(lambda text: "，" not in text)))
    for i, sample in samples_by_answer(template, conversation).items():
        answer, prompt = conversation.messages[i], asked(template, conversation, i)
        text = "".join(segment.text for segment in generated(template, sample, prompt))
        said = template.parse(text, thinking=template.thinking(answer), tools=conversation.tools)
        assert said == replace(answer, learn=None)
    assert template.expected(conversation).text == conversation.answer()


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_no_content_makes_a_control_token(made: Made, name: str, data: st.DataObject) -> None:
    tokenizer, template = made(name)
    hostile = data.draw(conversations(name))
    harmless = replace(hostile, messages=tuple(map(without_controls, hostile.messages)))
    for one, other in zip(template.render(hostile), template.render(harmless), strict=True):
        assert [s.control for s in one if s.control] == [s.control for s in other if s.control]
        counted = [[ids_of(tokenizer, sample).count(i) for i in tokenizer.controls.values()] for sample in (one, other)]
        assert counted[0] == counted[1]


def without_controls(message: Message) -> Message:
    """The same turn, each text a single word."""
    calls = tuple(replace(call, arguments=dict.fromkeys(call.arguments, "x")) for call in message.tool_calls)
    content, reasoning = (text and "x" for text in (message.content, message.reasoning))
    return replace(message, content=content or "", reasoning=reasoning, tool_calls=calls)


@pytest.mark.parametrize("name", NAMES)
def test_the_fingerprint_is_the_templates_own(made: Made, name: str) -> None:
    others = {made(other)[1].fingerprint for other in NAMES if other != name}
    assert made(name)[1].fingerprint not in others
    assert made(name)[1].name == name


@pytest.mark.parametrize("name", [name for name in NAMES if name != "jinja"])
def test_a_tokenizer_without_the_control_tokens_is_refused(name: str, make_tokenizer: Callable[..., Tokenizer]) -> None:
    with pytest.raises(ValueError, match=f"template: {name} needs the control tokens"):
        templates.find(name, make_tokenizer(JINJA_TOKENS, eos=None), "glm")
