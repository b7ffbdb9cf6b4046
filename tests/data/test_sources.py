from __future__ import annotations

import json
import pickle
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glm_lightning import templates
from glm_lightning.data import cache
from glm_lightning.data.dataset import Dataset
from glm_lightning.data.encoding import Encoder
from glm_lightning.data.formats.messages import Messages
from glm_lightning.data.formats.prompt_response import PromptResponse
from glm_lightning.data.gate import Gate
from glm_lightning.data.sources import Splits, load_splits
from glm_lightning.templates import Template
from glm_lightning.tokenizers import Tokenizer
from glm_lightning.types import Origin, UserError


def rows(*numbers: int) -> list[dict[str, str]]:
    return [{"prompt": f"question {n}", "response": f"answer {n} 好"} for n in numbers]


def write(path: Path, values: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values), encoding="utf-8")
    return path


@dataclass
class Room:
    folder: Path
    tokenizer: Tokenizer
    template: Template

    def load(self, train: Any, **changes: Any) -> Splits:
        settings: dict[str, Any] = {
            "val": None, "test": None, "format": PromptResponse(), "split": "seeded", "seed": 0, "max_length": 64,
            "cache_dir": self.folder / "cache", "gate": Gate(), "tokenizer": self.tokenizer, "template": self.template,
        }  # fmt: skip
        return load_splits(train=train, **(settings | changes))

    def folders(self) -> set[str]:
        return {path.name for path in (self.folder / "cache").iterdir() if path.is_dir()}


@pytest.fixture
def room(tmp_path: Path, glm4_tokenizer: Tokenizer) -> Room:
    return Room(tmp_path, glm4_tokenizer, templates.find("glm4", glm4_tokenizer, "glm"))


def questions(part: Dataset | None) -> list[str]:
    assert part is not None
    return [part.conversation(i).messages[0].content for i in range(len(part))]


def test_samples_lengths_and_origins_are_those_of_a_plain_loop(room: Room) -> None:
    path = write(room.folder / "a.jsonl", rows(*range(7)))
    data = room.load(path).train
    encoder = Encoder(tokenizer=room.tokenizer, template=room.template, max_length=64)
    for i, row in enumerate(rows(*range(7))):
        conversation = PromptResponse().parse(row, Origin(path, i + 1))
        (encoded,) = encoder.encode([conversation])
        sample = data.sample(i)
        assert sample == encoded.sample()
        assert data.lengths[i] == len(sample.input_ids)
        assert data.num_supervised[i] == sample.num_supervised > 0
        assert data.conversation(i) == conversation
        assert data.origin(i) == Origin(path, i + 1)
    assert data.lengths.dtype == data.num_supervised.dtype == np.int32


def test_a_subset_is_the_samples_at_its_indices(room: Room) -> None:
    data = room.load(write(room.folder / "a.jsonl", rows(*range(7)))).train
    part = data.subset([5, 2]).subset([1, 0])
    assert [part.sample(i) for i in range(2)] == [data.sample(2), data.sample(5)]
    assert questions(part) == ["question 2", "question 5"]
    assert part.lengths.tolist() == data.lengths[[2, 5]].tolist()
    assert [part.digest(i) for i in range(2)] == [data.digest(2), data.digest(5)]


def test_many_record_batches_are_one_data_set(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(room.folder / "a.jsonl", rows(*range(10)))
    whole = room.load(path).train
    monkeypatch.setattr(cache, "_CHUNK_ROWS", 3)
    parts = room.load(path, cache_dir=room.folder / "other").train
    assert [parts.sample(i) for i in range(10)] == [whole.sample(i) for i in range(10)]
    assert parts.num_supervised.tolist() == whole.num_supervised.tolist()


def test_an_encoding_is_reused_until_something_it_depends_on_changes(room: Room, chatml: Tokenizer) -> None:
    path = write(room.folder / "a.jsonl", rows(1, 2, 3))
    assert not room.load(path).train.cached
    again = room.load(path)
    assert again.train.cached
    assert questions(again.train) == ["question 1", "question 2", "question 3"]
    changes: list[dict[str, Any]] = [
        {"max_length": 63},
        {"format": PromptResponse(learn_history=False)},
        {"tokenizer": chatml, "template": templates.find("jinja", chatml, "glm")},
    ]
    assert not any(room.load(path, **change).train.cached for change in changes)
    write(path, rows(1, 2, 4))
    assert not room.load(path).train.cached
    assert len(room.folders()) == 5


def test_the_same_bytes_elsewhere_share_the_encoding_but_keep_their_origin(room: Room) -> None:
    room.load(write(room.folder / "a.jsonl", rows(1, 2)))
    moved = room.load(write(room.folder / "b.jsonl", rows(1, 2))).train
    assert moved.cached
    assert moved.origin(1) == Origin(room.folder / "b.jsonl", 2)


def test_of_several_that_want_the_same_one_encodes(room: Room) -> None:
    path = write(room.folder / "a.jsonl", rows(*range(200)))
    start = threading.Barrier(4)

    def load_it(_: int) -> bool:
        start.wait()
        return room.load(path).train.cached

    with ThreadPoolExecutor(4) as pool:  # the lock is on an open file: threads wait for each other as processes do
        assert sorted(pool.map(load_it, range(4))) == [False, True, True, True]


def test_a_data_set_travels_to_worker_processes(room: Room) -> None:
    data = room.load(write(room.folder / "a.jsonl", rows(1, 2, 3))).train.subset([2, 0])
    copy = pickle.loads(pickle.dumps(data))
    assert [copy.sample(i) for i in range(2)] == [data.sample(i) for i in range(2)]


def test_a_source_that_changed_meanwhile_is_not_believed(room: Room) -> None:
    path = write(room.folder / "a.jsonl", rows(1, 2))
    data = room.load(path).train
    write(path, rows(1, 3))
    assert data.conversation(0).messages[0].content == "question 1"
    with pytest.raises(UserError, match=r"a.jsonl:2: has changed"):
        data.conversation(1)


def test_parts_come_from_files_of_their_own(room: Room) -> None:
    files = {name: write(room.folder / f"{name}.jsonl", rows(n)) for n, name in enumerate(("train", "val", "test"))}
    splits = room.load(files["train"], val=files["val"], test=str(files["test"]))
    assert [questions(part) for part in splits.parts.values()] == [["question 0"], ["question 1"], ["question 2"]]
    assert splits.notices == []


def test_parts_are_taken_from_the_training_rows(room: Room) -> None:
    path = write(room.folder / "a.jsonl", rows(*range(40), 3, 3))
    splits = room.load(path, val=5, test=0.1, seed=3)
    sides = [set(questions(part)) for part in splits.parts.values()]
    assert (len(splits.val or []), len(splits.test or [])) == (5, 4)
    assert sum(map(len, sides)) == len(set().union(*sides)) == 40
    again = room.load(path, val=5, test=0.1, seed=3)
    assert [set(questions(part)) for part in again.parts.values()] == sides
    other = room.load(path, val=5, test=0.1, seed=4)
    assert [set(questions(part)) for part in other.parts.values()] != sides


def test_the_last_rows_are_taken_and_their_copies_dropped_and_counted(room: Room) -> None:
    path = write(room.folder / "a.jsonl", rows(9, 1, 2, 3, 8, 9))
    splits = room.load(path, val=2, split="last")
    assert questions(splits.train) == ["question 1", "question 2", "question 3"]
    assert questions(splits.val) == ["question 8", "question 9"]
    assert any(notice.startswith("train: 1 rows dropped") for notice in splits.notices)


def test_duplicates_leakage_and_shortening_are_notices(room: Room) -> None:
    train = write(room.folder / "train.jsonl", [*rows(1, 1, 2), {"prompt": "q " * 99, "response": "a " * 99}])
    val = write(room.folder / "val.jsonl", rows(2, 3))
    notices = room.load(train, val=val).notices
    said = [
        ("train: 1 of 4 samples shortened to 64 tokens", ""),
        ("train: 1 of 4 rows are exact copies of another", f"{train}:2 (see {train}:1)"),
        ("val: 1 of 2 rows stand in train too", f"{val}:1 (see {train}:3)"),
    ]
    assert all(any(n.startswith(start) and end in n for n in notices) for start, end in said)


def test_all_problems_of_all_files_come_at_once(room: Room) -> None:
    train = write(room.folder / "train.jsonl", [{"prompt": "q"}, *rows(1), {"response": "a"}])
    val = write(room.folder / "val.jsonl", [[1]])
    with pytest.raises(UserError) as error:
        room.load(train, val=val)
    expected = [
        "train.jsonl:1: no response",
        "train.jsonl:3: no prompt",
        "train.jsonl: 2 of 3 rows are bad",
        "val.jsonl:1: a row must be an object",
        "val.jsonl: 1 of 1 rows are bad",
    ]
    assert len(error.value.problems) == len(expected)
    assert all(text in problem for text, problem in zip(expected, error.value.problems, strict=True))


def test_what_a_template_refuses_has_its_line(room: Room) -> None:
    path = write(room.folder / "a.jsonl", [*rows(1), {"prompt": "q " * 50, "response": "a " * 50}])
    with pytest.raises(UserError, match=r"a.jsonl:1: data.max_length=6"):
        room.load(path, max_length=6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val": 3}, "data.val=3: that is 3 of 3 rows"),
        ({"val": 1.5, "test": 0}, "data.test=0"),
        ({"val": 2, "test": 1}, "take all 3"),
        ({"val": "missing.jsonl", "test": "gone/*.json"}, "data.test: 'gone"),
        ({"val": "a.jsonl"}, "also in data.train"),
    ],
)
def test_wrong_sizes_and_places_are_refused(
    room: Room, changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(room.folder)
    with pytest.raises(UserError) as error:
        room.load(write(room.folder / "a.jsonl", rows(1, 2, 3)), **changes)
    assert message in str(error.value)


def test_files_without_rows_are_refused(room: Room) -> None:
    with pytest.raises(UserError, match="no rows"):
        room.load(write(room.folder / "a.jsonl", []))


def test_a_part_that_copies_leave_without_rows_is_refused(room: Room) -> None:
    path = write(room.folder / "a.jsonl", rows(*[1, 2, 3] * 10))
    with pytest.raises(UserError, match=r"data\.val: gets no rows: the 30 training rows say only 3 different things"):
        room.load(path, val=0.1)
    val = room.load(path, val=10).val
    assert val is not None
    assert len(val) == 10


def test_a_file_that_is_renamed_is_read_by_its_new_name(room: Room) -> None:
    path = room.folder / "a.txt"
    path.write_text(json.dumps(rows(1)[0]).replace("{", "{ "), encoding="utf-8")
    with pytest.raises(UserError, match="no prompt"):
        room.load(path)
    assert len(room.load(path.rename(room.folder / "a.jsonl")).train) == 1


def test_rows_of_which_nothing_is_learned_are_refused(room: Room) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "loss": False}]
    with pytest.raises(UserError, match=r"a\.jsonl:1: no answer is to be learned"):
        room.load(write(room.folder / "a.jsonl", [{"messages": turns}]), format=Messages())


def test_the_cache_lies_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GLM_LIGHTNING_CACHE", str(tmp_path))
    assert cache.default_folder() == tmp_path
    monkeypatch.delenv("GLM_LIGHTNING_CACHE")
    assert cache.default_folder() == Path.home() / ".cache/glm_lightning"


def test_rows_on_one_line_are_rows_of_their_own(room: Room) -> None:
    path = room.folder / "one_line.json"
    path.write_text(json.dumps(rows(*range(10)), ensure_ascii=False), encoding="utf-8")
    splits = room.load(path, val=3)
    assert splits.val is not None
    assert (splits.train.num_rows, splits.val.num_rows) == (7, 3)
    assert sorted(questions(splits.train) + questions(splits.val)) == sorted(f"question {n}" for n in range(10))


def test_validation_that_is_not_asked_for_may_be_none(room: Room) -> None:
    path = write(room.folder / "a.jsonl", rows(0, 1, 2))
    splits = room.load(path, val=0.05, val_required=False)
    assert splits.val is None
    assert len(splits.train) == 3
    assert any("no rows are set aside for validation: data.val=0.05: that is 0 of 3 rows" in n for n in splits.notices)
    with pytest.raises(UserError, match="that is 0 of 3 rows"):
        room.load(path, val=0.05)
