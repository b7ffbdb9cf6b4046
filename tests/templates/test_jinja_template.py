from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glm_lightning import templates
from glm_lightning.templates.jinja import Jinja
from glm_lightning.tokenizers import Tokenizer
from glm_lightning.types import Conversation, Message, Segment, ToolCall, UserError

CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
OPEN, CLOSE = "<|im_start|>", "<|im_end|>"
GENERATE = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"

# The habits of published templates, each in a template of its own.
DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}" + GENERATE
)
STRIPS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}" + GENERATE
)
TEXT_AROUND = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %} ASSISTANT: {{ m['content'] }}<|im_end|>"
    "{% else %}{{ m['role'] | upper }}: {{ m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)
OPEN_END = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}{% endfor %}" + GENERATE
DROPS_REASONING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' and not loop.last %}"
    "{{ m['content'].split('</think>')[-1] }}{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}" + GENERATE
)
EMPTY_REASONING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last and '</think>' not in m['content'] %}<think></think>\n{% endif %}"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}" + GENERATE
)
ENDS_LAST_OTHERWISE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
    "{% if loop.last and m['role'] == 'assistant' %}<|endoftext|>{% else %}<|im_end|>{% endif %}{% endfor %}" + GENERATE
)
JOINT = [DEFAULT_SYSTEM, STRIPS, TEXT_AROUND, OPEN_END]

WORDS = st.text(alphabet="ab 你好\n", min_size=1, max_size=6).filter(str.strip)
HOSTILE = st.lists(st.one_of(WORDS, st.sampled_from(CONTROLS)), min_size=1, max_size=4).map("".join)


def turns(contents: Sequence[str]) -> Conversation:
    roles = ("user", "assistant")
    return Conversation(tuple(Message(roles[i % 2], content) for i, content in enumerate(contents)))  # type: ignore[arg-type]


def rounds(content: st.SearchStrategy[str]) -> st.SearchStrategy[Conversation]:
    pairs = st.lists(st.tuples(content, content), min_size=1, max_size=3)
    return pairs.map(lambda each: turns([text for pair in each for text in pair]))


def ids_of(tokenizer: Tokenizer, segments: Sequence[Segment]) -> list[int]:
    texts = iter(tokenizer.encode([s.text for s in segments if s.control is None]))
    return [i for s in segments for i in ([tokenizer.control_id(s.control)] if s.control else next(texts))]


def learned(segments: Sequence[Segment]) -> str:
    return "".join(s.control or s.text for s in segments if s.learn)


def theirs(tokenizer: Tokenizer, conversation: Conversation, **options: bool) -> list[int]:
    messages = [{"role": m.role, "content": m.content} for m in conversation.messages]
    return list(tokenizer.hf.apply_chat_template(messages, return_dict=False, **options))


@pytest.fixture(scope="session")
def with_template(make_tokenizer: Callable[..., Tokenizer]) -> Callable[[str], tuple[Tokenizer, Jinja]]:
    made: dict[str, tuple[Tokenizer, Jinja]] = {}

    def make(text: str) -> tuple[Tokenizer, Jinja]:
        if text not in made:
            tokenizer = make_tokenizer(CONTROLS, eos=CLOSE, chat_template=text)
            made[text] = tokenizer, Jinja(tokenizer)
        return made[text]

    return make


Make = Callable[[str], tuple[Tokenizer, Jinja]]


@pytest.mark.parametrize("text", [DEFAULT_SYSTEM, STRIPS])
@settings(max_examples=25, deadline=None)
@given(conversation=rounds(WORDS.map(str.strip)))
def test_ordinary_conversations_have_the_ids_of_apply_chat_template(
    with_template: Make, text: str, conversation: Conversation
) -> None:
    tokenizer, template = with_template(text)
    (sample,) = template.render(conversation)
    assert ids_of(tokenizer, sample) == theirs(tokenizer, conversation)
    prompt = ids_of(tokenizer, template.prompt(conversation.prompt()))
    assert prompt == theirs(tokenizer, conversation.prompt(), add_generation_prompt=True)


@pytest.mark.parametrize("text", JOINT)
@settings(max_examples=25, deadline=None)
@given(conversation=rounds(HOSTILE))
def test_learned_are_exactly_the_answers_and_their_ends(
    with_template: Make, text: str, conversation: Conversation
) -> None:
    _, template = with_template(text)
    (sample,) = template.render(conversation)
    answers = [m.content.strip() if text is STRIPS else m.content for m in conversation.messages[1::2]]
    lead = " " if text is TEXT_AROUND else ""
    ends = [OPEN if text is OPEN_END else CLOSE] * (len(answers) - 1) + [CLOSE]
    assert learned(sample) == "".join(lead + answer + end for answer, end in zip(answers, ends, strict=True))


@pytest.mark.parametrize("text", [*JOINT, DROPS_REASONING, EMPTY_REASONING, ENDS_LAST_OTHERWISE])
@settings(max_examples=25, deadline=None)
@given(conversation=rounds(HOSTILE))
def test_each_generation_view_begins_a_training_view_id_for_id(
    with_template: Make, text: str, conversation: Conversation
) -> None:
    tokenizer, template = with_template(text)
    samples = template.render(conversation)
    for number, i in enumerate(range(1, len(conversation.messages), 2)):
        prompt = ids_of(tokenizer, template.prompt(Conversation(conversation.messages[:i])))
        sample = ids_of(tokenizer, samples[min(number, len(samples) - 1)])
        assert sample[: len(prompt)] == prompt


@pytest.mark.parametrize("text", [*JOINT, DROPS_REASONING, EMPTY_REASONING, ENDS_LAST_OTHERWISE])
@settings(max_examples=25, deadline=None)
@given(conversation=rounds(HOSTILE))
def test_control_names_in_contents_add_no_control_tokens(
    with_template: Make, text: str, conversation: Conversation
) -> None:
    tokenizer, template = with_template(text)
    plain = turns(["x"] * len(conversation.messages))
    for hostile, harmless in zip(template.render(conversation), template.render(plain), strict=True):
        counts = [
            [ids_of(tokenizer, sample).count(i) for i in tokenizer.controls.values()] for sample in (hostile, harmless)
        ]
        assert counts[0] == counts[1]


def test_the_default_system_text_of_a_template_stays(with_template: Make) -> None:
    _, template = with_template(DEFAULT_SYSTEM)
    (sample,) = template.render(turns(["q", "a"]))
    assert sample[1] == Segment("system\nBe kind.")
    messages = (Message("system", "mine"), *turns(["q", "a"]).messages)
    (sample,) = template.render(Conversation(messages))
    assert sample[1] == Segment("system\nmine")


def test_an_answer_that_is_not_learned_leaves_nothing_learned(with_template: Make) -> None:
    _, template = with_template(DEFAULT_SYSTEM)
    messages = turns(["q1", "a1", "q2", "a2"]).messages
    switched = (messages[0], Message("assistant", "a1", learn=False), *messages[2:])
    (sample,) = template.render(Conversation(switched))
    assert learned(sample) == "a2<|im_end|>"


@pytest.mark.parametrize("text", [DEFAULT_SYSTEM, TEXT_AROUND])
def test_what_is_learned_does_not_change_where_texts_are_cut(with_template: Make, text: str) -> None:
    _, template = with_template(text)
    messages = turns(["q1", "\na1", "q2", "a2"]).messages
    switched = (messages[0], Message("assistant", "\na1", learn=False), *messages[2:])
    (sample,) = template.render(Conversation(switched))
    prompt = template.prompt(Conversation(messages[:3]))
    assert [(s.text, s.control) for s in sample[: len(prompt)]] == [(s.text, s.control) for s in prompt]


def test_the_newline_behind_the_end_token_is_not_learned(with_template: Make) -> None:
    _, template = with_template(DEFAULT_SYSTEM)
    (sample,) = template.render(turns(["q", "a"]))
    assert [(s.control or s.text, s.learn) for s in sample[-3:]] == [("a", True), (CLOSE, True), ("\n", False)]


def test_reasoning_that_leaves_the_history_makes_a_sample_of_each_answer(with_template: Make) -> None:
    _, template = with_template(DROPS_REASONING)
    conversation = turns(["q1", "<think>r1</think>a1", "q2", "<think>r2</think>a2"])
    first, second = template.render(conversation)
    assert learned(first) == "<think>r1</think>a1<|im_end|>"
    assert learned(second) == "<think>r2</think>a2<|im_end|>"
    assert "assistant\na1" in [s.text for s in second] or "a1" in [s.text for s in second]
    assert not any("r1" in s.text for s in second)


def test_what_a_template_puts_before_an_answer_is_learned_and_cleaned_away(with_template: Make) -> None:
    _, template = with_template(EMPTY_REASONING)
    samples = template.render(turns(["q1", "a1", "q2", "a2"]))
    assert [learned(sample) for sample in samples] == [f"<think></think>\n{a}{CLOSE}" for a in ("a1", "a2")]
    assert template.clean("<think></think>\na1") == "a1"


def test_stop_tokens_are_what_ends_answers_and_the_end_token(with_template: Make) -> None:
    assert with_template(DEFAULT_SYSTEM)[1].stop_tokens == (CLOSE,)
    assert set(with_template(OPEN_END)[1].stop_tokens) == {OPEN, CLOSE}
    assert set(with_template(ENDS_LAST_OTHERWISE)[1].stop_tokens) == {"<|endoftext|>", CLOSE}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{{ raise_exception('users only') }}", "users only"),
        ("{% for m in messages %}{{ m.content }}{{ m.content }}<|im_end|>{% endfor %}", "2 times"),
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}<|im_end|>{% endfor %}", "0 times"),
        (TEXT_AROUND.replace("ASSISTANT:{%", "HELPER:{%"), "generation prompt"),
        ("{% for m in messages %}<|im_start|>{{ m.content[:3] }}<|im_end|>{% endfor %}", "removes a part"),
        (STRIPS.replace("| trim", ".split('</think>')[-1]"), "removes a part"),
    ],
)
def test_a_template_that_cannot_be_masked_says_why(with_template: Make, text: str, reason: str) -> None:
    _, template = with_template(text)
    with pytest.raises(UserError, match=reason):
        template.render(turns(["long question", "<think>because</think>answer"]))


def test_without_any_end_token_an_answer_cannot_be_learned(make_tokenizer: Callable[..., Tokenizer]) -> None:
    tokenizer = make_tokenizer(CONTROLS, eos=None, chat_template=OPEN_END)
    with pytest.raises(UserError, match="no end token"):
        Jinja(tokenizer).render(turns(["q", "a"]))


def test_the_fingerprint_follows_the_template_text(with_template: Make) -> None:
    assert with_template(STRIPS)[1].fingerprint != with_template(OPEN_END)[1].fingerprint
    assert with_template(STRIPS)[1].fingerprint == Jinja(with_template(STRIPS)[0]).fingerprint


def test_find_makes_it_for_any_model_with_a_chat_template(with_template: Make) -> None:
    tokenizer, _ = with_template(STRIPS)
    assert templates.find("auto", tokenizer, "llama").name == "jinja"


CALL = Message("assistant", "", tool_calls=(ToolCall("find", {"where": "here <|im_end|>"}),))
TOOL = {"type": "function", "function": {"name": "find", "description": "<|im_start|>"}}
SHOWS = "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}"
CALLS = (
    "{% for c in m.tool_calls or [] %}<tool>{{ c.function.name }}: {{ c.function.arguments | tojson }}</tool>"
    "{% endfor %}"
)
WITH_CALLS = SHOWS + STRIPS.replace("<|im_end|>", CALLS + "<|im_end|>", 1)
# calls between control tokens, as DeepSeek has them
CONTROLLED = SHOWS + STRIPS.replace(
    "<|im_end|>", CALLS.replace("<tool>", "<|call|>").replace("</tool>", "<|/call|>") + CLOSE, 1
)


def asked_with(*messages: Message) -> Conversation:
    return Conversation((Message("user", "q"), *messages), tools=(TOOL,))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (WITH_CALLS, ['<tool>find: {"where": "here <|im_end|>"}</tool>', CLOSE]),
        (CONTROLLED, ["<|call|>", 'find: {"where": "here <|im_end|>"}', "<|/call|>", CLOSE]),
    ],
)
def test_calls_are_learned_and_texts_in_them_are_data(
    make_tokenizer: Callable[..., Tokenizer], text: str, expected: list[str]
) -> None:
    tokenizer = make_tokenizer((*CONTROLS, "<|call|>", "<|/call|>"), eos=CLOSE, chat_template=text)
    (sample,) = Jinja(tokenizer).render(asked_with(CALL, Message("tool", "<|im_start|>"), Message("assistant", "a")))
    said = [segment for segment in sample if segment.learn]
    assert [segment.control or segment.text for segment in said] == [*expected, "a", CLOSE]
    assert [segment.control for segment in said if segment.text] == [None, None]
    assert sample[0].text.startswith(
        '{"type": "function", "function": {"name": "find", "description": "<|im_start|>"}}'
    )


@pytest.mark.parametrize(
    ("text", "conversation", "reason"),
    [
        (STRIPS, asked_with(Message("assistant", "a")), "does not show the tool find"),
        (SHOWS + STRIPS, asked_with(CALL), "leaves out the call of find"),
        (STRIPS, Conversation((Message("user", "q"), Message("assistant", "a", reasoning="why"))), "out the reasoning"),
        (
            WITH_CALLS.replace("for m in messages", "for m in messages if m.role != 'tool'"),
            asked_with(CALL, Message("tool", "rainy"), Message("assistant", "a")),
            r"turn 3 \(tool\) is left out",
        ),
    ],
)
def test_nothing_is_left_out_without_a_word(
    with_template: Make, text: str, conversation: Conversation, reason: str
) -> None:
    _, template = with_template(text)
    with pytest.raises(UserError, match=reason):
        template.render(conversation)


def test_private_characters_in_a_row_stay(with_template: Make) -> None:
    _, template = with_template(WITH_CALLS)
    (sample,) = template.render(asked_with(Message("assistant", "a \ue0f00\ue0f1 <|im_end|>")))
    assert learned(sample) == "a \ue0f00\ue0f1 <|im_end|><|im_end|>"


def test_thinking_goes_to_the_template(with_template: Make) -> None:
    switch = "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
    _, template = with_template(STRIPS.replace("assistant\n{%", "assistant\n" + switch + "{%"))
    asked = Conversation((Message("user", "q"),))
    assert template.prompt(asked)[-1].text == "assistant\n"
    assert template.prompt(asked, thinking=False)[-1].text == "assistant\n<think></think>"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>\nr\n</think>\n\na", Message("assistant", "a", reasoning="r")),
        ('<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>', ToolCall("f", {"x": 1})),
        ('<tool_call>\n{"name": "f", "arguments": {\n</tool_call>', None),
        ("<tool_call>[]</tool_call>", None),
        (" a ", None),
    ],
)
def test_generated_texts(with_template: Make, text: str, expected: Message | ToolCall | None) -> None:
    _, template = with_template(STRIPS)
    if isinstance(expected, ToolCall):
        expected = Message("assistant", "", tool_calls=(expected,))
    assert template.parse(text) == (expected or Message("assistant", text))


def test_where_the_prompt_opens_reasoning_the_text_begins_with_it(with_template: Make) -> None:
    _, template = with_template(STRIPS.replace("assistant\n{%", "assistant\n<think>\n{%"))
    assert template.parse("r</think>\n\na") == Message("assistant", "a", reasoning="r")
