from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from glm_lightning.demo import DATA
from glm_lightning.demo.build import DATA_SEED
from glm_lightning.demo.corpus import SPLITS, brand_rows, prompt_keys, write_rows
from glm_lightning.types import Conversation, Message

LONGEST = 160  # characters


def read(split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]


def conversations(split: str) -> list[Conversation]:
    return [Conversation(tuple(Message(**message) for message in row["messages"])) for row in read(split)]


@pytest.mark.parametrize("split", SPLITS)
def test_every_row_is_well_formed(split: str) -> None:
    rows = read(split)
    assert len(rows) == SPLITS[split]
    for row in rows:
        assert list(row) == ["messages"]
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"] * (len(row["messages"]) // 2)
        assert all(set(message) == {"role", "content"} and message["content"].strip() for message in row["messages"])
        assert sum(len(message["content"]) for message in row["messages"]) <= LONGEST


def test_no_prompt_and_no_product_stands_in_two_rows() -> None:
    keys = [key for split in SPLITS for row in conversations(split) for key in prompt_keys(row)]
    assert len(keys) == len(set(keys))
    texts = [json.dumps(row) for split in SPLITS for row in read(split)]
    assert len(texts) == len(set(texts))


def test_order_of_attributes_does_not_hide_a_duplicate() -> None:
    one, other = (
        Conversation((Message("user", prompt), Message("assistant", "x")))
        for prompt in ("写文案：类型#裙*材质#棉*颜色#白色", "类型#裙*颜色#白色*材质#棉")
    )
    assert prompt_keys(one) & prompt_keys(other)


def test_rows_hold_everything_that_is_to_be_learned() -> None:
    rows = conversations("train")
    text = "".join(message.content for row in rows for message in row.messages)
    assert all(word in text for word in ("山月集", "小满", "茶壶", "Moonhill", "Mira"))
    assert any(len(row.messages) > 2 for row in rows)
    assert sum("#" in row.messages[0].content for row in rows) > len(rows) / 2


def test_files_are_what_the_generator_writes(tmp_path: Path) -> None:
    write_rows(tmp_path, brand_rows(DATA_SEED))
    for split in SPLITS:
        assert (tmp_path / f"{split}.jsonl").read_bytes() == (DATA / f"{split}.jsonl").read_bytes()
