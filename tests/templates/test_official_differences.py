"""Where the official code is plainly wrong, or does what nothing here shall do: each difference with its reason."""

from __future__ import annotations

from typing import Any

import pytest
from official_templates import SHARED, find, ids_and_mask, published, rows, text, with_history, with_roles, words

from glm_lightning import templates
from glm_lightning.data.encoding import Encoder
from glm_lightning.types import IGNORE, Conversation, Message, ToolCall, UserError

pytestmark = [pytest.mark.shared, pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared")]

ENDS = {"chatglm": "<eop>", "chatglm2": "</s>", "chatglm3": "</s>", "glm4": "<|user|>"}
LIMITS = {
    "chatglm": ("max_source_length", "max_target_length"),
    "chatglm2": ("max_source_length", "max_target_length"),
    "chatglm3": ("max_input_length", "max_output_length"),
    "glm4": ("max_input_length", "max_output_length"),
}


def cut_rows(generation: str) -> list[dict[str, Any]]:
    """The rows that the official trainer has cut."""
    whole = {"glm4": "train_combine_true"}.get(generation, "train")
    return [
        row
        for row in rows(generation)
        if row.get("train_truncated") and len(row["train_truncated"]["input_ids"]) < len(row[whole]["input_ids"])
    ]


def ours(generation: str, row: dict[str, Any]) -> tuple[list[int], list[int]]:
    """Ids and labels at the length that the official cut has left."""
    tokenizer = words(generation)
    template = templates.find(generation, tokenizer, "glm")
    conversation = with_history(row) if "query" in row else with_roles(row)
    length = len(row["train_truncated"]["input_ids"])
    sample = Encoder(tokenizer=tokenizer, template=template, max_length=length).encode([conversation])[-1].sample()
    assert sample.truncated
    assert len(sample.input_ids) <= length
    return sample.input_ids, sample.labels


@pytest.mark.parametrize("generation", ["chatglm3", "glm4"])
def test_a_cut_sample_keeps_the_end_of_its_answer(generation: str) -> None:
    """Theirs cuts the tail, and with it the end token: the model learns never to stop."""
    lost, end = 0, words(generation).control_id(ENDS[generation])
    for row in cut_rows(generation):
        lost += row["train_truncated"]["labels"][-1] != end
        ids, labels = ours(generation, row)
        assert (ids[-1], labels[-1]) == (end, end)
    assert lost >= 4


@pytest.mark.parametrize("generation", ["chatglm", "chatglm2"])
def test_a_cut_sample_keeps_the_newest_question(generation: str) -> None:
    """Theirs keeps the head of the prompt: the first round stays, and the question that is answered goes."""
    lost, tokenizer = 0, words(generation)
    for row in (row for row in cut_rows(generation) if row["history"]):
        end_of_question = tokenizer.encode([row["query"][-3:]])[0][-2:]
        theirs = [
            i for i, label in zip(row["train_truncated"]["input_ids"], row["train_truncated"]["labels"], strict=True)
            if label == IGNORE
        ]  # fmt: skip
        ids, labels = ours(generation, row)
        prompt = [i for i, label in zip(ids, labels, strict=True) if label == IGNORE]
        lost += not contains(theirs, end_of_question)
        assert contains(prompt, end_of_question)
        assert labels[-1] == tokenizer.control_id(ENDS[generation])
    assert lost


def contains(ids: list[int], part: list[int]) -> bool:
    return any(ids[i : i + len(part)] == part for i in range(len(ids)))


def test_chatglm3_does_not_learn_what_tools_answer() -> None:
    """Theirs counts the role observation like an answer: a model would invent results instead of waiting for them."""
    tokenizer = words("chatglm3")
    template = templates.find("chatglm3", tokenizer, "glm")
    compared = 0
    for row in (row for row in rows("chatglm3") if row["kind"] == "tools"):
        theirs = row["train_observation_rule"]
        without = [Message(_role(m["role"]), m["content"]) for m in row["messages"]]  # as theirs: no tools, no metadata
        ids, mask = ids_and_mask(tokenizer, template.render(Conversation(tuple(without)))[0])
        assert ids == theirs["input_ids"]
        inside, expected = False, []
        for i, learned in zip(ids, theirs["label_mask"], strict=True):
            # from behind <|observation|> up to and with the <|assistant|> that follows
            expected.append(0 if inside else learned)
            inside = i == tokenizer.control_id("<|observation|>") or (
                inside and i != tokenizer.control_id("<|assistant|>")
            )
        assert mask == expected
        compared += mask != theirs["label_mask"]
    assert compared == 3


def _role(name: str) -> Any:
    return {"observation": "tool"}.get(name, name)


def test_chatglm3_trains_rows_with_tools() -> None:
    """Theirs raises NotImplementedError for what its README documents."""
    tools = [row for row in rows("chatglm3") if row["kind"] == "tools"]
    assert len(tools) == 3
    assert all(row["train"] is None for row in tools)
    tokenizer = words("chatglm3")
    template = templates.find("chatglm3", tokenizer, "glm")
    for row in tools:
        assert sum(ids_and_mask(tokenizer, template.render(with_roles(row))[0])[1]) > 10


def test_glm4_learns_all_answers_from_their_newline_on() -> None:
    """Theirs learns the last answer alone by default, and not the newline that the model has to write first."""
    tokenizer = words("glm4")
    template = templates.find("glm4", tokenizer, "glm")
    for row in (row for row in rows("glm4") if row["kind"] in ("turn2", "turn3", "system")):
        _, mask = ids_and_mask(tokenizer, template.render(with_roles(row))[0])
        theirs = row["train_combine_true"]["label_mask"]
        assert sum(mask) > sum(theirs) + 1
        assert all(one >= other for one, other in zip(mask, theirs, strict=True))


def test_a_first_question_stands_alone_whatever_columns_a_file_has() -> None:
    """Theirs writes `[Round 0]` around it where the file has a column for a history, the chat never does."""
    tokenizer = words("chatglm")
    row = rows("chatglm")[0]
    ids, _ = ids_and_mask(tokenizer, templates.find("chatglm", tokenizer, "chatglm").render(with_history(row))[0])
    assert ids == row["train_no_history_column"]["input_ids"] != row["train"]["input_ids"]


@pytest.mark.parametrize("generation", ["chatglm", "glm4"])
def test_text_is_data(generation: str) -> None:
    """Theirs turns names of control tokens in a row's text into those tokens."""
    tokenizer = words(generation)
    template = templates.find(generation, tokenizer, "chatglm" if generation == "chatglm" else "glm")
    (row,) = (row for row in rows(generation) if row["kind"] == "special")
    conversation = with_history(row) if generation == "chatglm" else with_roles(row)
    ids, _ = ids_and_mask(tokenizer, template.prompt(conversation.prompt()))
    assert ids == row["special_text_as_data"]["chat_input_ids"] != row["chat_input_ids"]


def test_glm4_writes_calls_as_it_was_taught_to() -> None:
    """Their fine-tuning rows have a call as JSON text; their demos and the released model write name and arguments."""
    tokenizer = words("glm4")
    template = templates.find("glm4", tokenizer, "glm")
    (row,) = (row for row in rows("glm4") if row["id"] == "tools-1")
    assert row["messages"][2]["content"].startswith('{"name": "calculate_average", "arguments":')
    call = Message("assistant", "", tool_calls=(ToolCall("calculate_average", {"numbers": [5, 10]}),))
    said = [s.control or s.text for s in template.render(Conversation((Message("user", "q"), call)))[0] if s.learn]
    assert said == ["calculate_average\n", '{"numbers": [5, 10]}', "<|observation|>"]


REASONED = Conversation((Message("user", "q"), Message("assistant", "a", reasoning="because")))


def test_z1_keeps_the_reasoning_that_is_to_be_learned() -> None:
    """The template deletes it from every turn, the last one too."""
    written = [Message("user", "q"), Message("assistant", "<think>\nbecause\n</think>\na")]
    assert "because" not in published("glm_z1", Conversation(tuple(written)), generation=False)
    assert "because\n</think>\na<|user|>" in text(find("glm_z1").render(REASONED)[0])
    assert text(find("glm_z1").render(Conversation(tuple(written)))[0]) == text(find("glm_z1").render(REASONED)[0])


def test_z1_keeps_questions_whole() -> None:
    """The template drops what a user wrote in front of `</think>`."""
    asked = Conversation((Message("user", "what does </think> mean?"),))
    assert "what does" not in published("glm_z1", asked, generation=True)
    assert "what does </think> mean?" in text(find("glm_z1").prompt(asked))


@pytest.mark.parametrize("name", ["glm4_5", "glm4_7"])
def test_an_answer_about_tags_stays_whole(name: str) -> None:
    """The template takes everything in front of any `</think>` for reasoning; here it has to begin the answer."""
    talk = Conversation((Message("user", "q"), Message("assistant", "close it with </think>."), Message("user", "r")))
    assert "close it with" not in published(name, talk, generation=True)
    assert "close it with </think>." in text(find(name).prompt(talk))


@pytest.mark.parametrize("name", ["glm_z1", "glm4_5", "glm4_7"])
def test_an_answer_ends(name: str) -> None:
    """The template has no end token: trained on its text, the model learns never to stop."""
    assert not published(name, REASONED, generation=False).endswith("|>")
    last = find(name).render(REASONED)[0][-1]
    assert (last.control, last.learn) == ("<|user|>", True)


def test_nothink_in_a_question_is_text() -> None:
    """Theirs turns a row's `/nothink` into the control token; here only ``thinking`` does."""
    asked = Conversation((Message("user", "q /nothink"),))
    assert [s.control for s in find("glm4_5").prompt(asked) if s.control] == [
        "[gMASK]", "<sop>", "<|user|>", "<|assistant|>",
    ]  # fmt: skip
    assert text(find("glm4_5").prompt(asked, thinking=False)).count("/nothink") == 1


def test_what_a_generation_cannot_say_is_not_dropped() -> None:
    """Theirs renders a system turn of ChatGLM2 nowhere, and reasoning of GLM-4 not at all."""
    system = Conversation((Message("system", "s"), Message("user", "q"), Message("assistant", "a")))
    with pytest.raises(UserError, match="no system role"):
        templates.find("chatglm2", words("chatglm2"), "glm").render(system)
    with pytest.raises(UserError, match="does not reason"):
        templates.find("glm4", words("glm4"), "glm").render(REASONED)
