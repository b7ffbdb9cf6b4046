"""Real files of every format, and malformed ones, where they are at hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from glm_lightning import templates
from glm_lightning.data.formats.alpaca import Alpaca
from glm_lightning.data.formats.base import Format
from glm_lightning.data.formats.messages import Messages
from glm_lightning.data.formats.prompt_response import PromptResponse
from glm_lightning.data.formats.sharegpt import ShareGPT
from glm_lightning.data.sources import Splits, load_splits
from glm_lightning.tokenizers import Tokenizer
from glm_lightning.types import UserError

SHARED = (Path(__file__).resolve().parents[2] / "../shared").resolve()
pytestmark = [pytest.mark.shared, pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared")]

ADGEN = PromptResponse(prompt="content", response="summary")


def load(path: Path, format: Format, tokenizer: Tokenizer, folder: Path) -> Splits:
    template = templates.find("glm4", tokenizer, "glm")
    return load_splits(
        train=path, val=None, test=None, format=format, split="seeded", seed=0, max_length=4096, cache_dir=folder,
        tokenizer=tokenizer, template=template,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "format", "count"),
    [
        ("alpaca/alpaca_en_demo.json", Alpaca(), 999),
        ("alpaca/alpaca_zh_demo.json", Alpaca(), 1000),
        ("alpaca/identity.json", Alpaca(), 91),
        ("chat/oaast_sft_zh.json", Alpaca(), 689),
        ("chat/fastchat_dummy_conversation.json", ShareGPT(), 500),
        ("advertisegen/adgen.jsonl", ADGEN, 800),
        ("thudm/improve_data_sample.jsonl", PromptResponse(), 100),
        ("thudm/conversation_history_train.json", PromptResponse(learn_history=False), 3),
    ],
)
def test_real_files_load_with_all_their_rows(
    name: str, format: Format, count: int, glm4_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    splits = load(SHARED / "data" / name, format, glm4_tokenizer, tmp_path)
    assert splits.train.num_rows == len(splits.train) == count


# What a file gives: a number of rows, or what its error says.
EXPECTED: Mapping[str, tuple[Format, int | list[str]]] = {
    "01_truncated.json": (Alpaca(), [":1:262 (character 262)", "cut off"]),
    "03_concatenated_objects.json": (Messages(), [":1: more than one JSON value"]),
    "05_array_named_jsonl.jsonl": (Messages(), 2),
    "07_blank_lines_and_comment.jsonl": (Messages(), [":5: not JSON", "# comment"]),
    "09_scalar_rows.jsonl": (Messages(), [":1: a row must be an object, not a number"]),
    "11_wrapped_data_key.json": (Alpaca(), ["if data holds the rows"]),
    "13_utf16le_bom.jsonl": (ADGEN, ["UTF-16"]),
    "15_crlf.jsonl": (ADGEN, 2),
    "17_bad_utf8_middle.jsonl": (Messages(), [":2: byte 40 of the line (0xe4) is not UTF-8"]),
    "19_unicode_separators.jsonl": (Messages(), 2),
    "21_zero_byte.jsonl": (Messages(), ["no rows"]),
    "23_empty_array.json": (Messages(), ["no rows"]),
    "25_null_fields.jsonl": (Alpaca(), [":2: instruction is null", ":3: output is null", ":4: no instruction"]),
    "27_extra_keys.jsonl": (Alpaca(), 1),
    "29_mixed_schema.jsonl": (Alpaca(), [":2: no instruction", "data=messages", ":3: ", ":4: ", ":5: "]),
    "31_unknown_role.jsonl": (Messages(), [":1: messages[0].role 'User'", "system, user, assistant, tool"]),
    "33_assistant_first.jsonl": (Messages(), [":1: turn 1 is of assistant", ":2: turn 2 is of assistant"]),
    "35_only_system.jsonl": (Messages(), [":1: the last turn is of system", ":2: messages is empty"]),
    "37_system_in_middle.jsonl": (Messages(), [":1: turn 3 is of system", ":2: turn 2 is of system"]),
    "39_bad_tool_json.jsonl": (ShareGPT(), [":1: tools: ", "'function_call'"]),
    "43_answer_beyond_cutoff.jsonl": (Messages(), 1),
    "45_huge_ints_nan.jsonl": (Alpaca(), [":1: NaN is not JSON", ":2: Infinity is not JSON"]),
    "47_duplicate_rows.jsonl": (Messages(), 6),
    "49_special_token_injection.jsonl": (Messages(), 4),
    "51_raw_control_char.jsonl": (Alpaca(), [":1: not JSON: Invalid control character"]),
    "53_emoji_zwj.jsonl": (Messages(), 1),
    "57_gzip.jsonl.gz": (Messages(), ["gzip"]),
    "59_gzip_named_jsonl.jsonl": (Messages(), ["gzip"]),
    "61_lfs_pointer.jsonl": (Messages(), ["git lfs pull"]),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_malformed_files_give_the_described_outcome(name: str, glm4_tokenizer: Tokenizer, tmp_path: Path) -> None:
    format, expected = EXPECTED[name]
    path = SHARED / "bad" / name
    if isinstance(expected, int):
        assert len(load(path, format, glm4_tokenizer, tmp_path).train) == expected
        return
    with pytest.raises(UserError) as error:
        load(path, format, glm4_tokenizer, tmp_path)
    assert all(str(path) in problem for problem in error.value.problems)
    for text in expected:
        assert text in str(error.value)


def test_injected_control_tokens_are_text(glm4_tokenizer: Tokenizer, tmp_path: Path) -> None:
    data = load(SHARED / "bad/49_special_token_injection.jsonl", Messages(), glm4_tokenizer, tmp_path).train
    for i in range(len(data)):
        ids, users = data.sample(i).input_ids, [m for m in data.conversation(i).messages if m.role == "user"]
        assert ids.count(glm4_tokenizer.control_id("<|user|>")) == len(users) + 1
        text = glm4_tokenizer.decode(ids)
        assert all(message.content in text for message in data.conversation(i).messages)


def test_a_prompt_that_fills_the_length_leaves_room_for_the_answer(glm4_tokenizer: Tokenizer, tmp_path: Path) -> None:
    data = load(SHARED / "bad/43_answer_beyond_cutoff.jsonl", Messages(), glm4_tokenizer, tmp_path).train
    assert data.num_truncated == 1
    labels = [label for label in data.sample(0).labels if label >= 0]
    answer = data.conversation(0).answer()
    assert glm4_tokenizer.decode(labels, control=True) == f"\n{answer}<|user|>"
