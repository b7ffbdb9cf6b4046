"""Every golden conversation: ids and masks of the official code of ChatGLM-6B, ChatGLM2, ChatGLM3 and GLM-4."""

from __future__ import annotations

from typing import Any

import pytest
from official_templates import SHARED, ids_and_mask, rows, with_history, with_roles, words

from glm_lightning import templates
from glm_lightning.types import IGNORE

pytestmark = [pytest.mark.shared, pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared")]
Row = dict[str, Any]


def rows_of(generation: str) -> Any:
    return pytest.mark.parametrize("row", rows(generation), ids=lambda row: row["id"])


def test_the_goldens_are_there() -> None:
    counts = {name: len(rows(name)) for name in ("chatglm", "chatglm2", "chatglm3", "glm4")}
    assert counts == {"chatglm": 8, "chatglm2": 8, "chatglm3": 13, "glm4": 14}


def assert_learned(row: Row, ids: list[int], mask: list[int]) -> None:
    assert ids == row["input_ids"]
    assert mask == row["label_mask"]
    assert [i if learn else IGNORE for i, learn in zip(ids, mask, strict=True)] == row["labels"]


@rows_of("chatglm")
def test_chatglm(row: Row) -> None:
    tokenizer = words("chatglm")
    template = templates.find("chatglm", tokenizer, "chatglm")
    conversation = with_history(row)
    (sample,) = template.render(conversation)
    prompt, _ = ids_and_mask(tokenizer, template.prompt(conversation.prompt()))
    if row["kind"] == "special":
        as_data = row["special_text_as_data"]
        assert prompt == as_data["chat_input_ids"]
        # there the training form with a history column; the answer is the same
        length = len(as_data["train"]["labels"]) - as_data["train"]["label_mask"].index(1)
        ids, mask = ids_and_mask(tokenizer, sample)
        assert ids[-length:] == as_data["train"]["input_ids"][-length:]
        assert mask == [0] * (len(ids) - length) + [1] * length
        return
    assert prompt == row["chat_input_ids"]
    assert_learned(row["train"] if row["history"] else row["train_no_history_column"], *ids_and_mask(tokenizer, sample))


@rows_of("chatglm2")
def test_chatglm2(row: Row) -> None:
    tokenizer = words("chatglm2")
    template = templates.find("chatglm2", tokenizer, "glm")
    conversation = with_history(row)
    (sample,) = template.render(conversation)
    assert ids_and_mask(tokenizer, template.prompt(conversation.prompt()))[0] == row["chat_input_ids"]
    assert_learned(row["train"], *ids_and_mask(tokenizer, sample))


@rows_of("chatglm3")
def test_chatglm3(row: Row) -> None:
    tokenizer = words("chatglm3")
    template = templates.find("chatglm3", tokenizer, "glm")
    conversation = with_roles(row)
    (sample,) = template.render(conversation)
    ids, mask = ids_and_mask(tokenizer, sample)
    prompt, _ = ids_and_mask(tokenizer, template.prompt(conversation.prompt()))
    assert prompt == row["chat_input_ids"]
    assert ids[: len(prompt)] == prompt
    if row["train"]:  # the official trainer refuses rows with tools
        assert_learned(row["train"], ids, mask)


@rows_of("glm4")
def test_glm4(row: Row) -> None:
    tokenizer = words("glm4")
    template = templates.find("glm4", tokenizer, "glm")
    conversation = with_roles(row)
    (sample,) = template.render(conversation)
    ids, mask = ids_and_mask(tokenizer, sample)
    prompt, _ = ids_and_mask(tokenizer, template.prompt(conversation.prompt()))
    if row["kind"] == "special":
        assert prompt == row["special_text_as_data"]["chat_input_ids"]
        return
    assert prompt == row["chat_input_ids"]
    # ids with the <|user|> that only `combine: true` appends, and the mask of all answers, which only the other has
    assert ids == row["train_combine_true"]["input_ids"]
    assert mask[-1] == 1
    if all_answers := row.get("train_combine_false"):
        assert mask[:-1] == all_answers["label_mask"][: len(mask) - 1]
