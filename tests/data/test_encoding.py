from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from glm_lightning import templates
from glm_lightning.data.encoding import Encoded, Encoder, digest
from glm_lightning.tokenizers import Tokenizer
from glm_lightning.types import IGNORE, Conversation, Message, UserError

DROPS_REASONING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' and not loop.last %}"
    "{{ m['content'].split('</think>')[-1] }}{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = st.lists(
    st.one_of(st.text(alphabet="ab 你好，\n", max_size=6), st.sampled_from(["<|user|>", "<|im_end|>", "</think>"])),
    min_size=1,
    max_size=5,
).map("".join)


def talk(texts: Sequence[str], *, system: str | None = None) -> Conversation:
    roles = ("user", "assistant")
    messages = [Message(roles[i % 2], text) for i, text in enumerate(texts)]  # type: ignore[arg-type]
    return Conversation((*([Message("system", system)] if system else []), *messages))


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    pairs = draw(st.lists(st.tuples(TEXT.filter(str.strip), TEXT.filter(str.strip)), min_size=1, max_size=4))
    return talk([text for pair in pairs for text in pair], system=draw(st.sampled_from([None, "s"])))


@pytest.fixture(scope="session")
def tokenizers_by_name(chatml: Tokenizer, glm4_tokenizer: Tokenizer) -> dict[str, Tokenizer]:
    return {"glm4": glm4_tokenizer, "jinja": chatml}


def encoder(tokenizer: Tokenizer, name: str, max_length: int = 10_000) -> Encoder:
    template = templates.find(name, tokenizer, "glm")
    return Encoder(tokenizer=tokenizer, template=template, max_length=max_length)


def learned(tokenizer: Tokenizer, encoded: Encoded) -> str:
    labels = encoded.sample().labels
    return tokenizer.decode([label for label in labels if label != IGNORE], control=True)


@pytest.mark.parametrize("name", ["glm4", "jinja"])
@settings(max_examples=60, deadline=None)
@given(conversation=conversations())
def test_learned_labels_decode_to_exactly_the_answers_and_their_ends(
    tokenizers_by_name: dict[str, Tokenizer], name: str, conversation: Conversation
) -> None:
    tokenizer = tokenizers_by_name[name]
    (encoded,) = encoder(tokenizer, name).encode([conversation])
    answers = [message.content for message in conversation.messages if message.role == "assistant"]
    around = {"glm4": "\n{}<|user|>", "jinja": "{}<|im_end|>"}[name]
    assert learned(tokenizer, encoded) == "".join(around.format(answer) for answer in answers)
    assert not encoded.truncated
    sample = encoded.sample()
    assert all(label in (IGNORE, i) for label, i in zip(sample.labels, sample.input_ids, strict=True))


@pytest.mark.parametrize("name", ["glm4", "jinja"])
@settings(max_examples=60, deadline=None)
@given(conversation=conversations(), room=st.integers(24, 60))
def test_a_shortened_sample_fits_and_keeps_controls_and_the_end(
    tokenizers_by_name: dict[str, Tokenizer], name: str, conversation: Conversation, room: int
) -> None:
    tokenizer = tokenizers_by_name[name]
    (whole,) = encoder(tokenizer, name).encode([conversation])
    (short,) = encoder(tokenizer, name, room).encode([conversation])
    assert short.truncated == (len(whole.input_ids) > room)
    assert len(short.input_ids) <= room
    end = {"glm4": "<|user|>", "jinja": "<|im_end|>"}[name]
    last = max(i for i, learn in enumerate(short.learned) if learn)
    assert short.input_ids[last] == tokenizer.control_id(end)
    controls = set(tokenizer.controls.values())
    skeleton = [i for i in short.input_ids if i in controls]
    assert skeleton[-3:] == [i for i in whole.input_ids if i in controls][-3:]


def test_the_oldest_rounds_go_first_and_the_system_turn_stays(glm4_tokenizer: Tokenizer) -> None:
    conversation = talk(["q1 " * 9, "a1", "q2", "a2", "q3", "a3"], system="sys")
    (whole,) = encoder(glm4_tokenizer, "glm4").encode([conversation])
    (short,) = encoder(glm4_tokenizer, "glm4", len(whole.input_ids) - 1).encode([conversation])
    (expected,) = encoder(glm4_tokenizer, "glm4").encode([talk(["q2", "a2", "q3", "a3"], system="sys")])
    assert short.input_ids == expected.input_ids
    assert short.learned == expected.learned


def test_if_the_last_exchange_is_too_long_its_longest_texts_are_levelled(glm4_tokenizer: Tokenizer) -> None:
    conversation = talk(["b" * 50, "ab", "a b" * 50, "b a" * 40])
    (short,) = encoder(glm4_tokenizer, "glm4", 40).encode([conversation])
    text = glm4_tokenizer.decode(short.input_ids, control=True)
    assert text.startswith("[gMASK]<sop><|user|>\na b")
    assert text.endswith("<|user|>")
    question, answer = text.removesuffix("<|user|>").split("<|assistant|>\n")
    sizes = [len(glm4_tokenizer.encode([part])[0]) for part in (question.partition("\n")[2], answer)]
    assert sizes[0] == sizes[1]
    assert 39 <= len(short.input_ids) <= 40


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
