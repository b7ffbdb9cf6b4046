"""What a generation cannot express is refused: with the row, the generation, the rule and what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from generations import TOKENS

from glm_lightning import templates
from glm_lightning.templates import Template
from glm_lightning.tokenizers import Tokenizer
from glm_lightning.types import Conversation, Message, Origin, ToolCall, UserError

SYSTEM, QUESTION, ANSWER = Message("system", "s"), Message("user", "q"), Message("assistant", "a")
THOUGHT = Message("assistant", "a", reasoning="r")
CALL = Message("assistant", "", tool_calls=(ToolCall("f", {"x-y": 1}),))
RESULT = Message("tool", "r")
NAMED = {"name": "f", "parameters": {}}
BUILTIN = {"type": "python"}


@pytest.fixture
def find(make_tokenizer: Callable[..., Tokenizer]) -> Callable[[str], Template]:
    return lambda name: templates.find(name, make_tokenizer(TOKENS.get(name, TOKENS["glm4"]), eos=None), "glm")


@pytest.mark.parametrize(
    ("name", "messages", "tools", "reason"),
    [
        ("chatglm", (SYSTEM, QUESTION, ANSWER), (), "ChatGLM-6B has no system role; write the text at the beginning"),
        ("chatglm2", (SYSTEM, QUESTION, ANSWER), (), "ChatGLM2 has no system role"),
        ("chatglm", (QUESTION, ANSWER), (NAMED,), "ChatGLM-6B knows neither tools nor their results; take them out"),
        ("chatglm2", (QUESTION, CALL, RESULT, ANSWER), (), "ChatGLM2 knows neither tools"),
        ("chatglm", (QUESTION, THOUGHT), (), "ChatGLM-6B does not reason before it answers; take the reasoning out"),
        ("chatglm2", (QUESTION, QUESTION, ANSWER), (), "ChatGLM2 needs questions and answers in turn"),
        ("chatglm3", (QUESTION, THOUGHT), (), "ChatGLM3 does not reason"),
        ("chatglm3", (QUESTION, ANSWER), (BUILTIN,), r"ChatGLM3 knows functions only, and tools\[0\] has no name"),
        ("chatglm3", (QUESTION, CALL, RESULT, ANSWER), (), "the argument 'x-y' of f is no name there; rename it"),
        ("glm4", (QUESTION, THOUGHT), (), "GLM-4 does not reason"),
        ("glm4", (QUESTION, ANSWER), ({"type": "browser"},), "built-in types python, simple_browser, cogview"),
        ("glm4_0414", (QUESTION, ANSWER), (BUILTIN,), "GLM-4-0414 knows functions only"),
        ("glm4_0414", (QUESTION, THOUGHT), (), "GLM-4-0414 does not reason"),
        ("glm_z1", (QUESTION, ANSWER), (BUILTIN,), "GLM-Z1 knows functions only"),
        ("glm_edge", (QUESTION, ANSWER), (NAMED,), "how GLM-Edge is shown tools and their results is not published"),
        ("glm_edge", (QUESTION, CALL, RESULT, ANSWER), (), "how GLM-Edge is shown tools"),
        ("glm_edge", (QUESTION, THOUGHT), (), "GLM-Edge does not reason"),
    ],
)
def test_what_cannot_be_expressed(
    find: Callable[[str], Template], name: str, messages: tuple[Message, ...], tools: tuple[dict, ...], reason: str
) -> None:
    template, origin = find(name), Origin(Path("a.jsonl"), 3)
    conversation = Conversation(messages, origin, tools)
    with pytest.raises(UserError, match=f"^a.jsonl:3: .*{reason}"):
        template.render(conversation)
    with pytest.raises(UserError, match=reason):
        template.prompt(Conversation((*messages, QUESTION), None, tools))


@pytest.mark.parametrize("name", ["chatglm", "chatglm2", "chatglm3", "glm4", "glm_z1", "glm4_5", "glm4_7", "glm_edge"])
def test_an_answer_is_not_asked_for_an_answer(find: Callable[[str], Template], name: str) -> None:
    with pytest.raises(UserError, match="end with a user's turn"):
        find(name).prompt(Conversation((QUESTION, ANSWER)))


def test_everything_is_said_at_once(find: Callable[[str], Template]) -> None:
    with pytest.raises(UserError) as caught:
        find("chatglm").render(Conversation((SYSTEM, QUESTION, THOUGHT), tools=(NAMED,)))
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize("name", ["chatglm", "chatglm2"])
def test_a_system_turn_without_text_says_nothing(find: Callable[[str], Template], name: str) -> None:
    template = find(name)
    plain = Conversation((QUESTION, ANSWER))
    assert template.render(Conversation((Message("system", " "), *plain.messages))) == template.render(plain)


def test_templates_of_own_say_what_to_do_without_a_tokenizers_template(find: Callable[[str], Template]) -> None:
    with pytest.raises(UserError, match="must be one of auto, chatglm, chatglm2, chatglm3, glm4, glm4_0414, glm4_5"):
        find("glm5")
