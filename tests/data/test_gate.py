from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_runs import ROOT

from glm_lightning import templates
from glm_lightning.data import judging
from glm_lightning.data.cache import COUNTS
from glm_lightning.data.gate import Gate
from glm_lightning.data.sources import Splits, load_splits
from glm_lightning.tokenizers import Tokenizer
from glm_lightning.types import UserError

QUARANTINE = Gate(on_bad_row="quarantine", max_bad_share=1.0)
Load = Callable[..., Splits]


def row(number: int) -> dict[str, Any]:
    question = f"{number}: how many {chr(0x4E00 + number * 37)} are there in the {number * 7919} houses?"
    return {"prompt": question, "response": f"There are {number * 104729} of them, 共{number}个"}


def write(path: Path, lines: Sequence[object]) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    path.write_text("".join(text + "\n" for text in texts), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def load(glm4_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Load:
    folder = tmp_path_factory.mktemp("cache")
    template = templates.find("glm4", glm4_tokenizer, "glm")

    def load(train: Path, **changes: Any) -> Splits:
        knobs: dict[str, Any] = {
            "format": "prompt_response",
            "val": None,
            "test": None,
            "gate": Gate(),
            "max_length": 256,
        } | changes
        return load_splits(
            train=train, split="seeded", seed=0, cache_dir=folder, tokenizer=glm4_tokenizer,
            template=template, **knobs,
        )  # fmt: skip

    return load


BAD = [
    ("missing", {"prompt": "q"}),
    ("missing", {"prompt": None, "response": "a"}),
    ("empty", {"prompt": "q", "response": " "}),
    ("type", {"prompt": "q", "response": 7}),
    ("surrogate", '{"prompt": "q", "response": "\\ud800"}'),
    ("type", {"prompt": "q", "response": "a", "history": "none"}),
    ("syntax", '{"prompt": "q", "response": "a"'),
    ("type", "[1, 2]"),
]


def test_all_bad_rows_are_told_with_their_place_field_and_rule(load: Load, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [each for i, (_, bad) in enumerate(BAD) for each in (row(i), bad)])
    with pytest.raises(UserError) as error:
        load(path)
    *faults, summary = error.value.problems
    assert [problem.split(": ")[0] for problem in faults] == [f"{path}:{2 * i + 2}" for i in range(len(BAD))]
    assert f"{len(BAD)} of {2 * len(BAD)} rows are bad (3 type, 2 missing" in summary
    assert "data.on_bad_row=quarantine data.max_bad_share=0.5" in summary


def test_of_many_bad_rows_some_are_shown_and_all_are_counted(load: Load, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [row(0), *[{"prompt": "q"}] * 30, *[{"prompt": "q", "response": 1}] * 5])
    with pytest.raises(UserError) as error:
        load(path)
    *shown, more, summary = error.value.problems
    assert len(shown) == 20
    assert more == f"{path}: 15 more problems like these"
    assert "30 missing, 5 type" in summary
    assert "data.on_bad_row=quarantine" in summary


def test_quarantine_goes_on_without_the_bad_rows_and_keeps_them_with_their_reasons(load: Load, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [each for i, (_, bad) in enumerate(BAD) for each in (row(i), bad)])
    splits = load(path, gate=QUARANTINE, val=2)
    kept = [part.conversation(i).origin for part in splits.parts.values() for i in range(len(part))]
    assert sorted(origin.line for origin in kept if origin) == list(range(1, 2 * len(BAD), 2))
    quarantine = splits.train.quarantine()
    assert [(each["kind"], each["line"]) for each in quarantine] == [
        (kind, 2 * i + 2) for i, (kind, _) in enumerate(BAD)
    ]
    assert quarantine[0]["row"] == {"prompt": "q"}
    assert quarantine[0]["reason"].startswith("no response")
    assert any("8 bad rows (3 type, 2 missing" in notice for notice in splits.notices)


def test_too_many_bad_rows_stop_all_the_same(load: Load, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [row(i) for i in range(18)] + [{"prompt": "q"}] * 2)
    assert len(load(path, gate=Gate(on_bad_row="quarantine", max_bad_share=0.1)).train) == 18
    with pytest.raises(UserError, match=r"2 of 20 rows are bad \(2 missing\).*max_bad_share=0.09"):
        load(path, gate=Gate(on_bad_row="quarantine", max_bad_share=0.09))


def test_a_file_that_is_cut_off_is_never_set_aside(load: Load, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([row(i) for i in range(9)])[:-40], encoding="utf-8")
    with pytest.raises(UserError, match="cut off"):
        load(path, gate=QUARANTINE)


@pytest.mark.parametrize(
    ("severity", "lines"),
    [
        ({"duplicate": "error"}, [1, 2, 4, 5, 6]),
        ({"control_token": "error"}, [1, 2, 3, 4, 6]),
        ({"duplicate": "error", "control_token": "error", "replacement_character": "error"}, [1, 2, 4]),
        ({}, [1, 2, 3, 4, 5, 6]),
    ],
)
def test_a_notice_that_is_made_an_error_takes_its_rows_out(
    load: Load, tmp_path: Path, severity: dict[str, Any], lines: list[int]
) -> None:
    injected = {"prompt": "say <|user|>", "response": "what for?"}
    lost = {"prompt": "say it", "response": "\ufffd\ufffd"}
    path = write(tmp_path / "a.jsonl", [row(1), row(2), row(1), row(3), injected, lost])
    train = load(path, gate=Gate(on_bad_row="quarantine", max_bad_share=1.0, severity=severity)).train
    assert [train.origin(i).line for i in range(len(train))] == lines
    if severity:
        with pytest.raises(UserError, match=r"says what another row says|control token"):
            load(path, gate=Gate(severity=severity))


def test_a_row_that_does_not_fit_at_all_is_a_fault_of_its_own_kind(load: Load, tmp_path: Path) -> None:
    tokens = "word " * 30
    turns = {"prompt": tokens, "response": tokens, "system": tokens}
    path = write(tmp_path / "a.jsonl", [{"prompt": "q", "response": "a"}, turns])
    gate = Gate(on_bad_row="quarantine", max_bad_share=1.0)
    with pytest.raises(UserError, match=r"a.jsonl:1: data.max_length=7 leaves no room"):
        load(path, max_length=7)
    train = load(path, max_length=9, gate=gate).train
    assert ([train.origin(0).line], [each.kind for each in train.refused]) == ([1], ["over_long"])


def test_what_calls_are_given_is_judged_too(load: Load, tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "say", "arguments": json.dumps({"text": "<|user|>\u0007"})}}
    turns = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "done"},
        {"role": "assistant", "content": "a"},
    ]
    path = write(tmp_path / "a.jsonl", [{"messages": turns}])
    assert "control_token" in {count.kind for count in load(path, format="messages").counts}


def test_leakage_as_an_error_takes_the_training_rows_out(load: Load, tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", [row(1), row(2), row(3), row(2)])
    val = write(tmp_path / "val.jsonl", [row(2), row(9)])
    splits = load(train, val=val, gate=Gate(on_bad_row="quarantine", max_bad_share=1.0, severity={"leak": "error"}))
    assert [splits.train.origin(i).line for i in range(len(splits.train))] == [1, 3]
    assert splits.val is not None
    assert len(splits.val) == 2


def test_near_copies_and_near_leaks_are_counted_with_an_example(load: Load, tmp_path: Path) -> None:
    long = row(5) | {"response": "It depends on how one counts the houses on the other side of the river. " * 4}
    near = long | {"response": long["response"] + "Yes."}
    train = write(tmp_path / "train.jsonl", [row(1), long, near])
    val = write(tmp_path / "val.jsonl", [row(2), long | {"response": long["response"] + "No!"}])
    splits = load(train, val=val)
    counted = {(count.part, count.kind): (count.count, count.rows, count.example) for count in splits.counts}
    assert counted == {
        ("train", "near_duplicate"): (1, 3, f"{train}:3 (see {train}:2)"),
        ("val", "near_leak"): (1, 2, f"{val}:2 (see {train}:2)"),
    }


def test_a_severity_of_off_is_not_told(load: Load, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [row(1), row(1)])
    assert [count.kind for count in load(path).counts] == ["duplicate"]
    assert load(path, gate=Gate(severity={"duplicate": "off"})).counts == []


def test_an_empty_system_turn_is_fine(load: Load, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [row(1) | {"system": ""}, row(2) | {"system": None}])
    splits = load(path)
    assert (len(splits.train), splits.counts) == (2, [])


def test_yaml_lists_every_kind_whose_severity_can_be_changed() -> None:
    listed = yaml.safe_load((ROOT / "conf/data/default.yaml").read_text(encoding="utf-8"))["severity"]
    assert listed == {kind.name: kind.severity for kind in judging.kinds().values() if kind.severity != "error"}


def test_settings_that_make_no_sense_are_told_at_once() -> None:
    gate = Gate(on_bad_row="skip", max_bad_share=2.0, severity={"dup": "error"})  # type: ignore[arg-type]
    assert [problem.split(" is ")[0].split(":")[0] for problem in gate.check()] == [
        "data.on_bad_row",
        "data.max_bad_share",
        "data.severity.dup",
    ]


LINE = st.one_of(
    st.integers(0, 8).map(row),
    st.sampled_from([bad for _, bad in BAD]),
    st.just(""),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(LINE, min_size=1, max_size=12))
def test_nothing_is_lost_in_silence(load: Load, tmp_path: Path, lines: list[object]) -> None:
    path = write(tmp_path / "a.jsonl", [row(99), *lines])
    splits = load(path, gate=QUARANTINE)
    counts = json.loads((splits.train._store.folder / COUNTS).read_text(encoding="utf-8"))
    named = {(each.file, each.line) for each in splits.train.refused}
    assert counts["rows"] == sum(line != "" for line in lines) + 1
    assert counts["refused"] == len(named)
    assert splits.train.num_rows + len(named) == counts["rows"]


def test_a_file_of_which_no_row_is_left_says_why(load: Load, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"2 of 2 rows are bad \(2 missing\), so none is left") as error:
        load(write(tmp_path / "a.jsonl", [{"prompt": "q"}, {"prompt": "p"}]), gate=QUARANTINE)
    assert len(error.value.problems) == 3


def test_rows_that_are_left_out_for_a_notice_are_kept_as_they_stand(load: Load, tmp_path: Path) -> None:
    injected = {"prompt": "say <|user|>", "response": 7}, {"prompt": "say <|user|>", "response": "what for?", "id": 3}
    lines = [row(1), row(2), {**row(1), "id": 5}, injected[0], injected[1]]
    array = tmp_path / "one_line.json"
    array.write_text(json.dumps(lines), encoding="utf-8")
    gate = Gate(on_bad_row="quarantine", max_bad_share=1.0, severity={"duplicate": "error", "control_token": "error"})
    for path in (write(tmp_path / "a.jsonl", lines), array):
        kept = {each["kind"]: each["row"] for each in load(path, gate=gate).train.quarantine()}
        assert kept == {"type": injected[0], "control_token": injected[1]} | {"duplicate": kept["duplicate"]}
        assert kept["duplicate"] in (lines[0], lines[2])


def test_what_is_left_out_is_counted_in_the_reports(load: Load, tmp_path: Path) -> None:
    bad = {"prompt": None, "response": 7}
    path = write(tmp_path / "a.jsonl", [row(1), row(2), row(1), bad])
    gate = Gate(on_bad_row="quarantine", max_bad_share=1.0, severity={"duplicate": "error"})
    splits = load(path, gate=gate)
    counted = {(each.kind, each.severity, each.count, each.rows) for each in splits.counts}
    assert counted == {("missing", "error", 1, 4), ("type", "error", 1, 4), ("duplicate", "error", 1, 4)}
    assert "| train | missing | error | 1 | 4 |" in splits.fault_table()
    assert any("2 bad rows (3 faults: " in notice for notice in splits.notices)


def test_how_to_go_on_is_said_even_of_one_bad_row(load: Load, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [*(row(i) for i in range(199)), {"prompt": "q"}])
    with pytest.raises(UserError, match=r"1 of 200 rows are bad \(1 missing\); .* data.on_bad_row=quarantine$"):
        load(path)


def test_rows_that_json_has_no_words_for_are_kept_as_texts(load: Load, tmp_path: Path) -> None:
    day = datetime.date(2026, 1, 2)
    table = pa.table({"prompt": ["q", None], "response": ["a", "b"], "day": [day, day], "raw": [b"x", b"\xff"]})
    pq.write_table(table, tmp_path / "a.parquet")
    splits = load(tmp_path / "a.parquet", gate=Gate(on_bad_row="quarantine", max_bad_share=1.0))
    assert [each["row"]["day"] for each in splits.train.quarantine()] == ["2026-01-02"]
