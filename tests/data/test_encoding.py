from __future__ import annotations

from dataclasses import replace

import pytest
from encodings_of_rows import AROUND, STRIPPED, TEXT, controls_of, encoder, expressible, learned, talk
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from glm_lightning.data.encoding import Encoded, digest
from glm_lightning.data.truncation import STUB
from glm_lightning.tokenizers import Tokenizer
from glm_lightning.types import IGNORE, Conversation, Message, UserError

DROPS_REASONING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' and not loop.last %}"
    "{{ m['content'].split('</think>')[-1] }}{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    pairs = draw(st.lists(st.tuples(TEXT.filter(str.strip), TEXT.filter(str.strip)), min_size=1, max_size=4))
    return talk([text for pair in pairs for text in pair], system=draw(st.sampled_from([None, "s"])))


@pytest.mark.parametrize("name", AROUND)
@settings(max_examples=40, deadline=None)
@given(conversation=conversations())
def test_learned_labels_decode_to_exactly_the_answers_and_their_ends(
    tokenizers_by_name: dict[str, Tokenizer], name: str, conversation: Conversation
) -> None:
    tokenizer, conversation = tokenizers_by_name[name], expressible(name, conversation)
    samples = encoder(tokenizer, name).encode([conversation])
    answers = [message.content for message in conversation.messages if message.role == "assistant"]
    answers = [answer.strip() if name in STRIPPED else answer for answer in answers]
    inner, last = AROUND[name]
    assert "".join(learned(tokenizer, sample) for sample in samples) == "".join(
        [*(inner.format(answer) for answer in answers[:-1]), last.format(answers[-1])]
    )
    for encoded in samples:
        assert not encoded.truncated
        sample = encoded.sample()
        assert all(label in (IGNORE, i) for label, i in zip(sample.labels, sample.input_ids, strict=True))


@pytest.mark.parametrize("name", AROUND)
@settings(max_examples=40, deadline=None)
@given(conversation=conversations(), room=st.integers(32, 60))
def test_a_shortened_sample_fits_and_keeps_controls_and_the_end(
    tokenizers_by_name: dict[str, Tokenizer], name: str, conversation: Conversation, room: int
) -> None:
    tokenizer, conversation = tokenizers_by_name[name], expressible(name, conversation)
    every = encoder(tokenizer, name).encode([conversation])
    shortened = encoder(tokenizer, name, room).encode([conversation])
    for whole, short in zip(every, shortened, strict=True):
        assert short.truncated == (len(whole.input_ids) > room)
        assert len(short.input_ids) <= room
        last = max(i for i, learn in enumerate(short.learned) if learn)
        end = AROUND[name][1].rpartition("}")[2]
        if whole is every[-1]:
            assert short.input_ids[last] == tokenizer.control_id(end)
            assert controls_of(tokenizer, short)[-3:] == controls_of(tokenizer, whole)[-3:]


def test_the_oldest_rounds_go_first_and_the_system_turn_stays(glm4_tokenizer: Tokenizer) -> None:
    conversation = talk(["q1 " * 9, "a1", "q2", "a2", "q3", "a3"], system="sys")
    (whole,) = encoder(glm4_tokenizer, "glm4").encode([conversation])
    (short,) = encoder(glm4_tokenizer, "glm4", len(whole.input_ids) - 1).encode([conversation])
    (expected,) = encoder(glm4_tokenizer, "glm4").encode([talk(["q2", "a2", "q3", "a3"], system="sys")])
    assert short.input_ids == expected.input_ids
    assert short.learned == expected.learned


def parts(tokenizer: Tokenizer, encoded: Encoded) -> tuple[list[int], list[int]]:
    """The ids of a GLM-4 sample's last question and its answer, without the newlines in front."""
    ids = encoded.input_ids
    user, assistant = (
        [i for i, token in enumerate(ids) if token == tokenizer.control_id(name)]
        for name in ("<|user|>", "<|assistant|>")
    )
    return ids[user[-2] + 2 : assistant[-1]], ids[assistant[-1] + 2 : user[-1]]


def test_a_question_is_cut_in_its_middle_before_its_answer(glm4_tokenizer: Tokenizer) -> None:
    question, answer = "".join(chr(97 + i % 26) for i in range(200)), "a b" * 20
    (whole,) = encoder(glm4_tokenizer, "glm4").encode([talk(["b" * 50, "ab", question, answer])])
    asked, answered = parts(glm4_tokenizer, whole)
    (short,) = encoder(glm4_tokenizer, "glm4", len(answered) + 60).encode([talk(["b" * 50, "ab", question, answer])])
    kept, still_answered = parts(glm4_tokenizer, short)
    assert still_answered == answered
    half = len(kept) // 2
    assert kept == asked[: len(kept) - half] + asked[len(asked) - half :]
    assert len(short.input_ids) == len(answered) + 60
    assert short.truncated


def test_an_answer_that_alone_is_too_long_loses_its_tail_and_not_its_end_token(glm4_tokenizer: Tokenizer) -> None:
    conversation = talk(["q " * 100, "a " * 400])
    (whole,) = encoder(glm4_tokenizer, "glm4").encode([conversation])
    (short,) = encoder(glm4_tokenizer, "glm4", 200).encode([conversation])
    kept, answered = parts(glm4_tokenizer, short)
    assert len(kept) == STUB
    assert answered == parts(glm4_tokenizer, whole)[1][: len(answered)]
    assert len(short.input_ids) == 200
    assert learned(glm4_tokenizer, short).endswith("<|user|>")


@pytest.mark.parametrize("room", [10, 16, 40])
def test_in_little_room_question_and_answer_share_it(glm4_tokenizer: Tokenizer, room: int) -> None:
    (short,) = encoder(glm4_tokenizer, "glm4", room).encode([talk(["q " * 100, "a " * 400])])
    question, answer = parts(glm4_tokenizer, short)
    assert abs(len(question) - len(answer)) <= 2
    assert room - 1 <= len(short.input_ids) <= room


def test_tool_definitions_stay_before_old_rounds(glm4_tokenizer: Tokenizer) -> None:
    tools = ({"name": "find", "description": "b" * 40, "parameters": {}},)
    conversation = replace(talk(["q1 " * 30, "a1", "q2", "a2"], system="sys"), tools=tools)
    (whole,) = encoder(glm4_tokenizer, "glm4").encode([conversation])
    (short,) = encoder(glm4_tokenizer, "glm4", len(whole.input_ids) - 1).encode([conversation])
    newest = replace(talk(["q2", "a2"], system="sys"), tools=tools)
    (expected,) = encoder(glm4_tokenizer, "glm4").encode([newest])
    assert short.input_ids == expected.input_ids


def test_reasoning_that_is_cut_is_still_closed(glm4_tokenizer: Tokenizer) -> None:
    messages = (Message("user", "q"), Message("assistant", "a", reasoning="r " * 100))
    (short,) = encoder(glm4_tokenizer, "glm4_5", 60).encode([Conversation(messages)])
    assert learned(glm4_tokenizer, short).startswith("\n<think>r r")
    assert learned(glm4_tokenizer, short).endswith("</think>\na<|user|>")


def test_rounds_behind_which_nothing_is_learned_are_not_kept_instead_of_those_with_answers(
    glm4_tokenizer: Tokenizer,
) -> None:
    messages = (*talk(["q1", "a1"]).messages, Message("user", "q2"), Message("assistant", "b " * 90, learn=False))
    (short,) = encoder(glm4_tokenizer, "glm4", 40).encode([Conversation(messages)])
    assert learned(glm4_tokenizer, short) == "\na1<|user|>"
    assert short.turns == 2


def test_a_length_without_room_for_one_exchange_is_refused(glm4_tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="max_length=6"):
        encoder(glm4_tokenizer, "glm4", 6).encode([talk(["q" * 9, "a" * 9])])


def test_where_turns_change_each_answer_is_shortened_on_its_own(glm4_tokenizer: Tokenizer, chatml: Tokenizer) -> None:
    hf = chatml.hf
    kept, hf.chat_template = hf.chat_template, DROPS_REASONING
    try:
        conversation = talk(["q1", "x</think>a1", "q2", "y</think>a2"])
        whole = encoder(chatml, "jinja").encode([conversation])
        short = encoder(chatml, "jinja", len(whole[1].input_ids) - 1).encode([conversation])
    finally:
        hf.chat_template = kept
    assert [learned(chatml, each) for each in whole] == ["x</think>a1<|im_end|>", "y</think>a2<|im_end|>"]
    assert [each.turns for each in whole] == [2, 4]
    assert [each.truncated for each in short] == [False, True]
    assert learned(chatml, short[1]) == "y</think>a2<|im_end|>"
    assert "q1" not in chatml.decode(short[1].input_ids)


@settings(max_examples=30, deadline=None)
@given(batch=st.lists(conversations(), min_size=1, max_size=5))
def test_a_batch_is_encoded_like_each_alone(chatml: Tokenizer, batch: list[Conversation]) -> None:
    one = encoder(chatml, "jinja")
    assert one.encode(batch) == [each for conversation in batch for each in one.encode([conversation])]


@settings(max_examples=60, deadline=None)
@given(one=conversations(), other=conversations())
def test_the_digest_tells_contents_apart_and_nothing_else(one: Conversation, other: Conversation) -> None:
    assume(one.messages != other.messages)
    assert digest(one) != digest(other)
    switched = Conversation(tuple(Message(m.role, m.content, learn=False) for m in one.messages))
    assert digest(one) == digest(switched)
    assert len(digest(one)) == 16


def test_the_digest_is_not_fooled_by_text_moved_between_turns() -> None:
    assert digest(talk(["a", "bc"])) != digest(talk(["ab", "c"]))
    for size in (0, 1):
        spelt = f"xassistant {size} yuser {size} z"
        assert digest(talk(["x", "y", "z", "w"])) != digest(talk([spelt, "w"]))
