"""Each generation's way of writing, spelled out: what is learned stands in brackets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

import pytest
from generations import TOKENS

from glm_lightning import templates
from glm_lightning.templates import Template
from glm_lightning.tokenizers import Tokenizer
from glm_lightning.types import Conversation, Message, Segment, ToolCall

TALK = (Message("user", "q1"), Message("assistant", "a1"), Message("user", "q2"), Message("assistant", "a2"))
SYSTEM = Message("system", "s")
REASONED = (
    *(Message("user", "q1"), Message("assistant", "a1", reasoning="r1")),
    *(Message("user", "q2"), Message("assistant", "a2", reasoning="r2")),
)
CALL = ToolCall("find", {"a": "x y", "n": 1})
TOOL = {"type": "function", "function": {"name": "find", "parameters": {}}}
INDENTED = '{\n    "name": "find",\n    "parameters": {}\n}'
SECTION = f"## find\n\n{INDENTED}\n在调用上述函数时，请使用 Json 格式表示调用的参数。"
DUTY = "你的任务是针对用户的问题和要求提供适当的答复和支持。\n\n# 可用工具\n"
USED = (
    *(Message("user", "q"), Message("assistant", "", tool_calls=(CALL,)), Message("tool", "o")),
    Message("assistant", "a"),
)


@pytest.fixture
def find(make_tokenizer: Callable[..., Tokenizer]) -> Callable[[str], Template]:
    return lambda name: templates.find(name, make_tokenizer(TOKENS.get(name, TOKENS["glm4"]), eos=None), "glm")


def written(segments: Sequence[Segment]) -> str:
    groups = groupby(segments, key=lambda segment: segment.learn)
    texts = [(learn, "".join(each.control or each.text for each in group)) for learn, group in groups]
    return "".join(f"[{text}]" if learn else text for learn, text in texts)


PREFIX = "[gMASK]<sop>"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "chatglm",
            ["q1[gMASK][<sop>a1<eop>]", "[Round 0]\n问：q1\n答：a1\n[Round 1]\n问：q2\n答：[gMASK][<sop>a2<eop>]"],
        ),
        (
            "chatglm2",
            [
                "[gMASK]sop[Round 1]\n\n问：q1\n\n答：[a1</s>]",
                "[gMASK]sop[Round 1]\n\n问：q1\n\n答：a1\n\n[Round 2]\n\n问：q2\n\n答：[a2</s>]",
            ],
        ),
        ("chatglm3", ["[gMASK]sop<|user|>\nq1<|assistant|>[\na1<|user|>]\nq2<|assistant|>[\na2</s>]"]),
        ("glm4", [f"{PREFIX}<|user|>\nq1<|assistant|>[\na1<|user|>]\nq2<|assistant|>[\na2<|user|>]"]),
        ("glm4_0414", [f"{PREFIX}<|user|>\nq1<|assistant|>[\na1<|user|>]\nq2<|assistant|>[\na2<|user|>]"]),
        ("glm_edge", ["<|user|>\nq1<|assistant|>[\na1<|user|>]\nq2<|assistant|>[\na2<|user|>]"]),
        (
            "glm_z1",
            [
                f"{PREFIX}<|user|>\nq1<|assistant|>\n<think>[\n</think>\na1<|user|>]",
                f"{PREFIX}<|user|>\nq1<|assistant|>\na1<|user|>\nq2<|assistant|>\n<think>[\n</think>\na2<|user|>]",
            ],
        ),
        (
            "glm4_5",
            [
                f"{PREFIX}<|user|>\nq1<|assistant|>[\n<think></think>\na1<|user|>]\nq2<|assistant|>"
                "[\n<think></think>\na2<|user|>]"
            ],
        ),
        ("glm4_7", [f"{PREFIX}<|user|>q1<|assistant|></think>[a1<|user|>]q2<|assistant|></think>[a2<|user|>]"]),
    ],
)
def test_two_rounds(find: Callable[[str], Template], name: str, expected: list[str]) -> None:
    assert [written(sample) for sample in find(name).render(Conversation(TALK))] == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "glm_z1",
            [
                f"{PREFIX}<|system|>\ns<|user|>\nq1<|assistant|>\n<think>[\nr1\n</think>\na1<|user|>]",
                f"{PREFIX}<|system|>\ns<|user|>\nq1<|assistant|>\na1<|user|>\nq2<|assistant|>\n<think>"
                "[\nr2\n</think>\na2<|user|>]",
            ],
        ),
        (
            "glm4_5",
            [
                f"{PREFIX}<|system|>\ns<|user|>\nq1<|assistant|>[\n<think>r1</think>\na1<|user|>]",
                f"{PREFIX}<|system|>\ns<|user|>\nq1<|assistant|>\n<think></think>\na1<|user|>\nq2<|assistant|>"
                "[\n<think>r2</think>\na2<|user|>]",
            ],
        ),
        (
            "glm4_7",
            [
                f"{PREFIX}<|system|>s<|user|>q1<|assistant|><think>[r1</think>a1<|user|>]",
                f"{PREFIX}<|system|>s<|user|>q1<|assistant|></think>a1<|user|>q2<|assistant|><think>"
                "[r2</think>a2<|user|>]",
            ],
        ),
    ],
)
def test_reasoning_is_learned_and_leaves_the_history(
    find: Callable[[str], Template], name: str, expected: list[str]
) -> None:
    assert [written(sample) for sample in find(name).render(Conversation((SYSTEM, *REASONED)))] == expected
    tags = tuple(
        Message("assistant", f"<think>\n{m.reasoning}\n</think>\n\n{m.content}") if m.reasoning else m
        for m in (SYSTEM, *REASONED)
    )
    assert [written(sample) for sample in find(name).render(Conversation(tags))] == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "chatglm3",
            "[gMASK]sop<|system|>\nAnswer the following questions as best as you can. You have access to the following "
            'tools:\n[\n    {\n        "name": "find",\n        "parameters": {}\n    }\n]<|user|>\nq<|assistant|>'
            "[find\n```python\ntool_call(a='x y', n=1)\n```<|observation|>]\no<|assistant|>[\na</s>]",
        ),
        (
            "glm4",
            f"{PREFIX}<|system|>\n你是一个名为 ChatGLM 的人工智能助手。你是基于智谱AI训练的语言模型 GLM-4 模型开发的，"
            f'{DUTY}{SECTION}<|user|>\nq<|assistant|>[find\n{{"a": "x y", "n": 1}}<|observation|>]\no<|assistant|>'
            "[\na<|user|>]",
        ),
        (
            "glm4_0414",
            f"{PREFIX}<|system|>\n# 可用工具\n\n{SECTION}<|user|>\nq<|assistant|>"
            '[find\n{"a": "x y", "n": 1}<|observation|>]\no<|assistant|>[\na<|user|>]',
        ),
        (
            "glm_z1",
            f"{PREFIX}<|system|>\n你是一个名为 ChatGLM 的人工智能助手。你是基于智谱 AI 公司训练的语言模型 GLM-4 模型"
            f'开发的，{DUTY}{SECTION}<|user|>\nq<|assistant|>find\n{{"a": "x y", "n": 1}}<|observation|>\no'
            "<|assistant|>\n<think>[\n</think>\na<|user|>]",
        ),
        (
            "glm4_5",
            "<tool_call>{function-name}\n<arg_key>{arg-key-1}</arg_key>\n<arg_value>{arg-value-1}</arg_value>\n"
            "<arg_key>{arg-key-2}</arg_key>\n<arg_value>{arg-value-2}</arg_value>\n...\n</tool_call><|user|>\nq"
            "<|assistant|>[\n<think></think>\n<tool_call>find\n<arg_key>a</arg_key>\n<arg_value>x y</arg_value>\n"
            "<arg_key>n</arg_key>\n<arg_value>1</arg_value>\n</tool_call><|observation|>]\n<tool_response>\no\n"
            "</tool_response><|assistant|>[\n<think></think>\na<|user|>]",
        ),
        (
            "glm4_7",
            "<tool_call>{function-name}<arg_key>{arg-key-1}</arg_key><arg_value>{arg-value-1}</arg_value>"
            "<arg_key>{arg-key-2}</arg_key><arg_value>{arg-value-2}</arg_value>...</tool_call><|user|>q"
            "<|assistant|></think>[<tool_call>find<arg_key>a</arg_key><arg_value>x y</arg_value>"
            "<arg_key>n</arg_key><arg_value>1</arg_value></tool_call><|observation|>]<tool_response>o</tool_response>"
            "<|assistant|></think>[a<|user|>]",
        ),
    ],
)
def test_a_tool_is_shown_called_and_answers(find: Callable[[str], Template], name: str, expected: str) -> None:
    sample = written(find(name).render(Conversation(USED, tools=(TOOL,)))[-1])
    assert sample.endswith(expected)
    if name in ("glm4_5", "glm4_7"):
        shown = '<tools>\n{"type": "function", "function": {"name": "find", "parameters": {}}}\n</tools>'
        assert sample.startswith(f"{PREFIX}<|system|>\n# Tools\n\nYou may call one or more functions")
        assert shown in sample
    else:
        assert sample == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("chatglm3", "[\nc\n<|assistant|>f\n```python\ntool_call()\n```<|assistant|>g\n```python\ntool_call()\n```"),
        ("glm4", "[\nc\n<|assistant|>f\n{}<|assistant|>g\n{}"),
        ("glm4_0414", "[\nc\n<|assistant|>f\n{}<|assistant|>g\n{}"),
        ("glm_z1", "\n<think>[\nr\n</think>\nc\n<|assistant|>f\n{}<|assistant|>g\n{}"),
        ("glm4_5", "[\n<think>r</think>\nc\n<tool_call>f\n</tool_call>\n<tool_call>g\n</tool_call>"),
        ("glm4_7", "<think>[r</think>c<tool_call>f</tool_call><tool_call>g</tool_call>"),
    ],
)
def test_an_answer_may_say_something_and_call_twice(find: Callable[[str], Template], name: str, expected: str) -> None:
    reasoning = "r" if "think" in expected else None
    answer = Message("assistant", "c", reasoning=reasoning, tool_calls=(ToolCall("f", {}), ToolCall("g", {})))
    (sample,) = find(name).render(Conversation((Message("user", "q"), answer)))
    assert written(sample).endswith(f"q<|assistant|>{expected}<|observation|>]")


def test_reasoning_may_lead_to_a_call_alone(find: Callable[[str], Template]) -> None:
    answer = Message("assistant", "", reasoning="r", tool_calls=(ToolCall("f", {}),))
    (sample,) = find("glm_z1").render(Conversation((Message("user", "q"), answer)))
    assert written(sample).endswith("<|assistant|>\n<think>[\nr\n</think><|assistant|>f\n{}<|observation|>]")


@pytest.mark.parametrize(
    ("name", "on", "off"),
    [
        ("glm_z1", "\nq<|assistant|>\n<think>", "\nq<|assistant|>\n<think>\n</think>"),
        ("glm4_5", "\nq<|assistant|>", "\nq/nothink<|assistant|>\n<think></think>"),
        ("glm4_7", "q<|assistant|><think>", "q<|assistant|></think>"),
        ("glm4", "\nq<|assistant|>", "\nq<|assistant|>"),
    ],
)
def test_reasoning_is_switched_on_and_off(find: Callable[[str], Template], name: str, on: str, off: str) -> None:
    template, asked = find(name), Conversation((Message("user", "q"),))
    assert written(template.prompt(asked)) == written(template.prompt(asked, thinking=True))
    assert written(template.prompt(asked)) == f"{PREFIX}<|user|>{on}"
    assert written(template.prompt(asked, thinking=False)) == f"{PREFIX}<|user|>{off}"


@pytest.mark.parametrize(
    ("name", "stops"),
    [
        ("chatglm", ("<eop>",)),
        ("chatglm2", ("</s>",)),
        ("chatglm3", ("</s>", "<|user|>", "<|observation|>")),
        *((each, ("<|endoftext|>", "<|user|>", "<|observation|>")) for each in ("glm4", "glm_z1", "glm4_7")),
    ],
)
def test_generation_stops_on(find: Callable[[str], Template], name: str, stops: tuple[str, ...]) -> None:
    assert find(name).stop_tokens == stops


def test_chatglm3_keeps_a_system_text_in_front_of_its_tools(find: Callable[[str], Template]) -> None:
    system = written(find("chatglm3").render(Conversation((SYSTEM, *TALK), tools=(TOOL,)))[0])
    assert system.startswith("[gMASK]sop<|system|>\ns\n[\n    {\n")


@pytest.mark.parametrize("name", ["glm4_0414", "glm_z1"])
def test_system_turns_stand_in_front(find: Callable[[str], Template], name: str) -> None:
    asked = Conversation((*TALK[:2], SYSTEM, TALK[2]))
    assert written(find(name).prompt(asked)).startswith(f"{PREFIX}<|system|>\ns<|user|>\nq1<|assistant|>\na1<|user|>")
    samples = [written(sample) for sample in find(name).render(Conversation((*TALK[:2], SYSTEM, *TALK[2:])))]
    assert ["<|system|>" in sample for sample in samples] == [False, True]  # each as generation saw it
