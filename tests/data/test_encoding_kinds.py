"""Documents and pairs as the model sees them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from encodings_of_rows import AROUND, STRIPPED, TEXT, controls_of, encoder, expressible, learned, talk
from hypothesis import given, settings
from hypothesis import strategies as st

from glm_lightning import templates
from glm_lightning.data.encoding import digest
from glm_lightning.tokenizers import Tokenizer
from glm_lightning.types import IGNORE, Conversation, Document, Message, Preference, UserError

FRAMES = {
    "chatglm": ("[gMASK]<sop>", "<eop>"),
    "chatglm2": ("[gMASK]sop", "</s>"),
    "chatglm3": ("[gMASK]sop", "</s>"),
    "glm_edge": ("", "<|endoftext|>"),
    "jinja": ("", "<|im_end|>"),
}
WITH_PREFIX = ("[gMASK]<sop>", "<|endoftext|>")


@pytest.mark.parametrize("name", AROUND)
@settings(max_examples=30, deadline=None)
@given(texts=st.lists(TEXT, min_size=1, max_size=3), room=st.integers(5, 20))
def test_a_document_is_split_without_loss_and_all_of_it_is_learned(
    tokenizers_by_name: dict[str, Tokenizer], name: str, texts: list[str], room: int
) -> None:
    tokenizer = tokenizers_by_name[name]
    prefix, end = FRAMES.get(name, WITH_PREFIX)
    for text in texts:
        (whole,) = encoder(tokenizer, name).encode([Document(text)])
        parts = encoder(tokenizer, name, room).encode([Document(text)])
        (ids,) = tokenizer.encode([text])
        body = [*ids, tokenizer.control_id(end)]
        start = len(whole.input_ids) - len(body)
        assert tokenizer.decode(whole.input_ids[:start], control=True) == prefix
        assert whole.input_ids[start:] == body
        assert all(part.input_ids[:start] == whole.input_ids[:start] for part in parts)
        assert [i for part in parts for i in part.input_ids[start:]] == body
        assert all(len(part.input_ids) == room for part in parts[:-1])
        assert len(parts[-1].input_ids) <= room
        for part in parts:
            assert part.learned == [False] * start + [True] * (len(part.input_ids) - start)
            assert (part.turns, part.truncated, part.num_chosen) == (0, False, 0)


def test_a_length_without_room_for_a_text_is_refused(glm4_tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="max_length=3 leaves no room for a text behind the 2 tokens"):
        encoder(glm4_tokenizer, "glm4", 3).encode([Document("text")])


def test_a_text_needs_an_end_token(make_tokenizer: Callable[..., Tokenizer], chatml: Tokenizer) -> None:
    endless = make_tokenizer(list(chatml.controls), eos=None, chat_template=chatml.hf.chat_template)
    with pytest.raises(UserError, match="names no end token"):
        templates.find("jinja", endless, "llama").document("text")


def pair(chosen: Conversation, rejected: str) -> Preference:
    return Preference(chosen, Conversation((*chosen.messages[:-1], Message("assistant", rejected))))


@st.composite
def pairs(draw: st.DrawFn) -> Preference:
    said = TEXT.filter(str.strip)
    rounds = draw(st.lists(st.tuples(said, said), min_size=1, max_size=3))
    chosen = talk([text for each in rounds for text in each], system=draw(st.sampled_from([None, "s"])))
    return pair(chosen, draw(said.filter(lambda text: text != rounds[-1][1])))


def expressed(name: str, preference: Preference) -> Preference:
    return Preference(expressible(name, preference.chosen), expressible(name, preference.rejected))


@pytest.mark.parametrize("name", AROUND)
@settings(max_examples=30, deadline=None)
@given(preference=pairs())
def test_of_a_pair_the_last_answers_are_learned_behind_one_prompt(
    tokenizers_by_name: dict[str, Tokenizer], name: str, preference: Preference
) -> None:
    tokenizer, preference = tokenizers_by_name[name], expressed(name, preference)
    one = encoder(tokenizer, name)
    (encoded,) = one.encode([preference])
    for sequence, side in zip(encoded.sample().sequences, (preference.chosen, preference.rejected), strict=True):
        alone = one.encode([side])[-1]
        assert sequence.input_ids == alone.input_ids
        answer = side.messages[-1].content
        last = [label for label in sequence.labels if label != IGNORE]
        assert last == [i for i, learn in zip(alone.input_ids, alone.learned, strict=True) if learn][-len(last) :]
        ending = AROUND[name][1].format(answer.strip() if name in STRIPPED else answer)
        assert tokenizer.decode(last, control=True) == ending


@pytest.mark.parametrize("name", AROUND)
@settings(max_examples=30, deadline=None)
@given(preference=pairs(), room=st.integers(32, 60))
def test_what_is_cut_from_one_side_is_cut_from_the_other(
    tokenizers_by_name: dict[str, Tokenizer], name: str, preference: Preference, room: int
) -> None:
    tokenizer, preference = tokenizers_by_name[name], expressed(name, preference)
    (whole,) = encoder(tokenizer, name).encode([preference])
    (short,) = encoder(tokenizer, name, room).encode([preference])
    chosen, rejected = short.sample().sequences
    assert short.truncated == any(len(side.input_ids) > room for side in whole.sample().sequences)
    assert short.cut == len(whole.input_ids) - len(short.input_ids)
    prompts = []
    for side, uncut in zip((chosen, rejected), whole.sample().sequences, strict=True):
        assert len(side.input_ids) <= room
        assert side.labels[-1] == uncut.labels[-1]
        prompts.append(side.input_ids[: next(i for i, label in enumerate(side.labels) if label != IGNORE)])
    assert prompts[0] == prompts[1]
    assert prompts[0]


def test_a_long_answer_costs_both_sides_the_oldest_rounds(glm4_tokenizer: Tokenizer) -> None:
    preference = pair(talk(["q1 " * 20, "a1", "q2", "short"]), "long " * 40)
    one = encoder(glm4_tokenizer, "glm4")
    (alone,) = one.encode([pair(talk(["q2", "short"]), "long " * 40)])
    limit = max(len(side.input_ids) for side in alone.sample().sequences)
    (short,) = encoder(glm4_tokenizer, "glm4", limit).encode([preference])
    assert (short.input_ids, short.learned, short.num_chosen) == (alone.input_ids, alone.learned, alone.num_chosen)
    assert short.truncated


def test_sides_that_are_asked_in_different_ways_are_refused(glm4_tokenizer: Tokenizer) -> None:
    """GLM-4.7 opens the reasoning in the prompt, or closes it there."""
    with pytest.raises(UserError, match="give reasoning to both of them or to neither"):
        encoder(glm4_tokenizer, "glm4_7").encode([pair(talk(["q", "<think>hm</think>a"]), "b")])


def test_rows_of_all_kinds_are_encoded_like_each_alone(chatml: Tokenizer) -> None:
    rows = [talk(["q", "a"]), Document("a b " * 30), pair(talk(["q", "a"]), "b"), talk(["q", "a", "q", "b"])]
    one = encoder(chatml, "jinja", 40)
    assert one.encode(rows) == [each for row in rows for each in one.encode([row])]


def test_digests_tell_kinds_and_sides_apart() -> None:
    preference = pair(talk(["q", "a"]), "b")
    rows = [preference, Preference(preference.rejected, preference.chosen), preference.chosen, Document("q")]
    assert len({digest(row) for row in rows}) == 4


def test_control_tokens_in_a_document_are_text(glm4_tokenizer: Tokenizer) -> None:
    (encoded,) = encoder(glm4_tokenizer, "glm4").encode([Document("<|user|> <|endoftext|>")])
    assert len(controls_of(glm4_tokenizer, encoded)) == 3
    assert learned(glm4_tokenizer, encoded) == "<|user|> <|endoftext|><|endoftext|>"
