"""Real files of every format, and malformed ones, where they are at hand. None is told its format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from glm_lightning import templates
from glm_lightning.data.formats.recognition import described
from glm_lightning.data.gate import Gate
from glm_lightning.data.inputs import Inputs, sources_of
from glm_lightning.data.reading import Problems
from glm_lightning.data.sources import Splits, load_splits
from glm_lightning.tokenizers import Tokenizer
from glm_lightning.types import Conversation, Origin, UserError

SHARED = (Path(__file__).resolve().parents[2] / "../shared").resolve()
pytestmark = [pytest.mark.shared, pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared")]


def load(path: Path, tokenizer: Tokenizer, folder: Path, *, format: str = "auto") -> Splits:
    template = templates.find("glm4", tokenizer, "glm")
    return load_splits(
        train=str(path), val=None, test=None, format=format, split="seeded", seed=0, max_length=4096,
        cache_dir=folder, gate=Gate(), tokenizer=tokenizer, template=template,
    )  # fmt: skip


ADGEN = "prompt_response (prompt=content, response=summary)"
QUERY = "prompt_response (prompt=query)"
FILES = {
    "advertisegen/adgen.jsonl": (ADGEN, 800),
    "alpaca/alpaca_en_demo.json": ("alpaca", 999),
    "alpaca/alpaca_zh_demo.json": ("alpaca", 1000),
    "alpaca/identity.json": ("alpaca", 91),
    "chat/fastchat_dummy_conversation.json": ("sharegpt", 500),
    "chat/oaast_sft_zh.json": ("alpaca", 689),
    "formats/alpaca.csv": ("alpaca", 3),
    "formats/alpaca.jsonl": ("alpaca", 3),
    "formats/alpaca2.csv": ("alpaca", 3),
    "formats/chatml.jsonl": ("messages", 3),
    "formats/conversations.jsonl": ("sharegpt", 3),
    "formats/sharegpt.jsonl": ("rounds", 3),
    "formats/swift_multi.json": (QUERY, 3),
    "formats/swift_multi.jsonl": (QUERY, 3),
    "formats/swift_pre.csv": ("text (text=response)", 3),
    "formats/swift_pre.jsonl": ("text (text=response)", 3),
    "formats/swift_single.csv": (QUERY, 3),
    "formats/swift_single.jsonl": (QUERY, 3),
    "math/gsm8k_train.jsonl": ("prompt_response (prompt=question, response=answer)", 7473),
    "mix/bilingual_sft.jsonl": ("messages", 8377),
    "preference/dpo_zh_demo.json": ("preference (prompt=conversations)", 300),
    "pretrain/c4_demo.jsonl": ("text", 300),
    "pretrain/wiki_demo.txt": ("text", 30),
    "ssbuild/finetune_train_conversations.json": ("sharegpt", 150),
    "ssbuild/finetune_train_paragraph.json": (
        "rounds (rounds=paragraph, question=q, answer=a, question_optional=True)", 150,
    ),
    "thudm/conversation_history_train.json": ("prompt_response (learn_history=False)", 3),
    "thudm/improve_data_sample.jsonl": ("prompt_response", 100),
    "tools/chatglm3_tools_zh.jsonl": ("chatglm3", 298),
    "tools/glaive_toolcall_zh_demo.json": ("sharegpt", 300),
    "tools/glm4_tools_zh.jsonl": ("glm4_tools", 298),
}  # fmt: skip


def parsed(path: Path) -> tuple[str, list[object]]:
    """The format of a file, and its rows as the format reads them."""
    inputs, problems = Inputs.of(sources_of(str(path), key="data.train")), Problems()
    (file,) = inputs.files
    rows = [file.format.parse(row.value, Origin(path, row.line)) for row in inputs.read(path, problems)]
    assert problems.texts == []
    return described(file.format), rows


def test_no_file_is_forgotten() -> None:
    assert set(FILES) == {str(file.relative_to(SHARED / "data")) for file in (SHARED / "data").glob("*/*")}


@pytest.mark.parametrize("name", FILES)
def test_real_files_are_recognised_and_have_all_their_rows(name: str) -> None:
    format, rows = parsed(SHARED / "data" / name)
    assert (format, len(rows)) == FILES[name]


def test_the_same_tools_in_three_dialects() -> None:
    """The official ChatGLM3 and GLM-4 rows were made from Glaive's; turns and calls are the same in all."""
    names = ("glaive_toolcall_zh_demo.json", "chatglm3_tools_zh.jsonl", "glm4_tools_zh.jsonl")
    glaive, chatglm3, glm4 = (parsed(SHARED / "data/tools" / name)[1] for name in names)
    known = {_content(row) for row in glaive}
    calls = 0
    for one, other in zip(chatglm3, glm4, strict=True):
        assert _content(one) == _content(other)
        assert _content(one) in known
        assert isinstance(one, Conversation)
        calls += sum(len(message.tool_calls) for message in one.messages)
    assert calls == 216


def _content(row: object) -> str:
    assert isinstance(row, Conversation)
    return repr([(m.role, m.content, m.tool_calls) for m in row.messages if m.role != "system"])


def test_the_seed_users_files_say_the_same_in_both_dialects() -> None:
    paragraph, conversations = (
        parsed(SHARED / f"data/ssbuild/finetune_train_{name}.json")[1] for name in ("paragraph", "conversations")
    )
    assert [_content(row) for row in paragraph] == [_content(row) for row in conversations]


@pytest.mark.parametrize("name", ["ssbuild/finetune_train_paragraph.json", "tools/chatglm3_tools_zh.jsonl"])
def test_real_files_are_encoded_with_all_their_rows(name: str, glm4_tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert load(SHARED / "data" / name, glm4_tokenizer, tmp_path).train.num_rows == FILES[name][1]


# What a file gives: a number of rows, or what its error says.
EXPECTED: Mapping[str, int | list[str]] = {
    "01_truncated.json": [":1:262 (character 262)", "cut off"],
    "03_concatenated_objects.json": [":1: more than one JSON value"],
    "05_array_named_jsonl.jsonl": 2,
    "07_blank_lines_and_comment.jsonl": [":5: not JSON", "# comment"],
    "09_scalar_rows.jsonl": [":1: a row must be an object, not a number"],
    "11_wrapped_data_key.json": ["if data holds the rows"],
    "13_utf16le_bom.jsonl": 2,
    "15_crlf.jsonl": 2,
    "17_bad_utf8_middle.jsonl": [":2: byte 40 of the line (0xe4) is not UTF-8"],
    "19_unicode_separators.jsonl": 2,
    "21_zero_byte.jsonl": ["no rows"],
    "23_empty_array.json": ["no rows"],
    "25_null_fields.jsonl": [":2: instruction is null", ":3: output is null", ":4: no instruction"],
    "27_extra_keys.jsonl": 1,
    "29_mixed_schema.jsonl": ["rows of several formats: line 1 looks like alpaca, line 2 looks like messages"],
    "31_unknown_role.jsonl": [":1: messages[0].role 'User'", "system, user, assistant, tool", ":2: no messages"],
    "33_assistant_first.jsonl": [":1: turn 1 is of assistant", ":2: turn 2 is of assistant"],
    "35_only_system.jsonl": [":1: the last turn is of system", ":2: messages is empty"],
    "37_system_in_middle.jsonl": [":1: turn 3 is of system", ":2: turn 2 is of system"],
    "39_bad_tool_json.jsonl": [":1: tools: not JSON", "conversations[1].value: not JSON"],
    "41_pref_equal.jsonl": ["pairs of a chosen and a rejected answer", "objective=preference"],
    "43_answer_beyond_cutoff.jsonl": 1,
    "45_huge_ints_nan.jsonl": [":1: NaN is not JSON", ":2: Infinity is not JSON"],
    "47_duplicate_rows.jsonl": 6,
    "49_special_token_injection.jsonl": 4,
    "51_raw_control_char.jsonl": [":1: not JSON: Invalid control character"],
    "53_emoji_zwj.jsonl": 1,
    "55_ragged.csv": [":2: 5 fields", ":3: 1 fields", ":4: not CSV: a quote that is opened here is never closed"],
    "57_gzip.jsonl.gz": 2,
    "59_gzip_named_jsonl.jsonl": 1,
    "61_lfs_pointer.jsonl": ["git lfs pull"],
    "63_fake.parquet": ["not Parquet"],
}


NAMED = {"31_unknown_role.jsonl": "messages"}
"""The format of a file that has rows of several; all others are recognised."""


def test_no_case_is_forgotten() -> None:
    assert set(EXPECTED) == {file.name for file in (SHARED / "bad").glob("[0-9]*")}


@pytest.mark.parametrize("name", EXPECTED)
def test_malformed_files_give_the_described_outcome(name: str, glm4_tokenizer: Tokenizer, tmp_path: Path) -> None:
    expected, path, format = EXPECTED[name], SHARED / "bad" / name, NAMED.get(name, "auto")
    if isinstance(expected, int):
        assert len(load(path, glm4_tokenizer, tmp_path, format=format).train) == expected
        return
    with pytest.raises(UserError) as error:
        load(path, glm4_tokenizer, tmp_path, format=format)
    assert all(str(path) in problem for problem in error.value.problems)
    for text in expected:
        assert text in str(error.value)


def test_preference_pairs_that_are_wrong_are_named() -> None:
    path = SHARED / "bad/41_pref_equal.jsonl"
    inputs = Inputs.of(sources_of(str(path), key="data.train"))
    (file,) = inputs.files
    expectations = ("neither is better", "no rejected", "chosen must be a text")
    for row, expected in zip(inputs.read(path, Problems()), expectations, strict=True):
        with pytest.raises(UserError, match=expected):
            file.format.parse(row.value, Origin(path, row.line))


def test_injected_control_tokens_are_text(glm4_tokenizer: Tokenizer, tmp_path: Path) -> None:
    data = load(SHARED / "bad/49_special_token_injection.jsonl", glm4_tokenizer, tmp_path).train
    for i in range(len(data)):
        ids, users = data.sample(i).input_ids, [m for m in data.conversation(i).messages if m.role == "user"]
        assert ids.count(glm4_tokenizer.control_id("<|user|>")) == len(users) + 1
        text = glm4_tokenizer.decode(ids)
        assert all(message.content in text for message in data.conversation(i).messages)


def test_a_prompt_that_fills_the_length_leaves_room_for_the_answer(glm4_tokenizer: Tokenizer, tmp_path: Path) -> None:
    data = load(SHARED / "bad/43_answer_beyond_cutoff.jsonl", glm4_tokenizer, tmp_path).train
    assert data.num_truncated == 1
    labels = [label for label in data.sample(0).labels if label >= 0]
    answer = data.conversation(0).answer()
    assert glm4_tokenizer.decode(labels, control=True) == f"\n{answer}<|user|>"
