from __future__ import annotations

import pytest

from glm_lightning import templates
from glm_lightning.templates import Template
from glm_lightning.tokenizers import Tokenizer
from glm_lightning.types import Conversation, Message, Segment, UserError


@pytest.fixture
def glm4(glm4_tokenizer: Tokenizer) -> Template:
    return templates.find("auto", glm4_tokenizer, "glm")


def talk(*turns: tuple[str, str] | tuple[str, str, bool]) -> Conversation:
    return Conversation(tuple(Message(*turn) for turn in turns))


def written(segments: list[Segment]) -> list[str]:
    """Each segment as its text or control token, with `*` behind what is learned."""
    return [(segment.control or segment.text) + "*" * segment.learn for segment in segments]


def test_two_rounds_learn_each_answer_with_its_newline_and_the_role_that_ends_it(glm4: Template) -> None:
    conversation = talk(("system", "s"), ("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2"))
    (sample,) = glm4.render(conversation)
    assert written(sample) == [
        "[gMASK]", "<sop>", "<|system|>", "\n", "s", "<|user|>", "\n", "q1", "<|assistant|>", "\n*", "a1*",
        "<|user|>*", "\n", "q2", "<|assistant|>", "\n*", "a2*", "<|user|>*",
    ]  # fmt: skip


def test_a_tool_result_ends_an_answer(glm4: Template) -> None:
    (sample,) = glm4.render(talk(("user", "q"), ("assistant", "call"), ("tool", "r"), ("assistant", "a")))
    assert written(sample)[7:11] == ["call*", "<|observation|>*", "\n", "r"]


def test_an_answer_that_is_not_learned_leaves_nothing_learned(glm4: Template) -> None:
    conversation = talk(("user", "q1"), ("assistant", "a1", False), ("user", "q2"), ("assistant", "a2"))
    (sample,) = glm4.render(conversation)
    assert [piece for piece in written(sample) if piece.endswith("*")] == ["\n*", "a2*", "<|user|>*"]
    (sample,) = glm4.render(talk(("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2", False)))
    assert [piece for piece in written(sample) if piece.endswith("*")] == ["\n*", "a1*", "<|user|>*"]


def test_the_generation_view_begins_the_training_view_and_learns_nothing(glm4: Template) -> None:
    conversation = talk(("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2"))
    prompt = glm4.prompt(conversation.prompt())
    (sample,) = glm4.render(conversation)
    assert [(s.text, s.control) for s in prompt] == [(s.text, s.control) for s in sample[: len(prompt)]]
    assert prompt[-1].control == "<|assistant|>"
    assert not any(segment.learn for segment in prompt)


def test_generation_stops_on_what_ends_answers(glm4: Template) -> None:
    assert glm4.stop_tokens == ("<|endoftext|>", "<|user|>", "<|observation|>")
    assert glm4.clean("\nanswer\n") == "answer\n"


def test_a_tokenizer_without_its_control_tokens_is_refused(chatml: Tokenizer) -> None:
    with pytest.raises(UserError, match="gMASK"):
        templates.find("glm4", chatml, "glm")


def test_find_chooses_by_type_and_tokens_and_lists_what_there_is(
    glm4_tokenizer: Tokenizer, chatml: Tokenizer, glm4: Template
) -> None:
    assert glm4.name == "glm4"
    assert templates.find("auto", chatml, "glm").name == "jinja"
    with pytest.raises(UserError, match="chat_template"):
        templates.find("auto", glm4_tokenizer, "llama")
    with pytest.raises(UserError, match="must be one of auto, chatglm, chatglm2"):
        templates.find("glm5", chatml, "glm")
    with pytest.raises(UserError, match="chat template"):
        templates.find("jinja", glm4_tokenizer, "glm")
