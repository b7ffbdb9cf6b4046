from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kitchen import BAD, Kitchen, contents, many

from glm_lightning import templates
from glm_lightning.data import cache, comparison, judging, rows
from glm_lightning.data.dataset import Dataset, Store
from glm_lightning.data.findings import Findings
from glm_lightning.data.plan import Plan
from glm_lightning.files import fingerprint
from glm_lightning.tokenizers import Tokenizer

TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=60).filter(lambda text: text.strip() != "")
ROWS = st.lists(st.fixed_dictionaries({"prompt": TEXT, "response": TEXT}), min_size=1, max_size=12)


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux only")
def test_one_process_and_eight_write_the_same_bytes(kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_CHUNK_ROWS", 20)
    path = kitchen.write(many(300))
    folders = [kitchen.build(path, f"with{count}", processes=count) for count in (1, 2, 8)]
    results = [contents(folder) for folder in folders]
    assert results[0] == results[1] == results[2]
    counts = json.loads(results[0][cache.COUNTS])
    assert (counts["rows"], counts["refused"], counts["samples"]) == (300, 2, 298)
    rows = Store(folders[0], files=[path], format=kitchen.inputs(path)).rows.tolist()
    assert rows == [row for row in range(300) if row not in (3, 150)]
    found = Findings(folders[0] / cache.FINDINGS).of(judging.kinds())
    assert [each.row for each in found if each.kind == "missing"] == [3]
    kinds = [each.kind for each in found]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "missing": 1,
        "type": 1,
        "control_character": 298,
        "control_token": 298,
    }


def test_samples_have_one_name_whatever_chunks_they_were_written_in(
    kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = kitchen.write(many(30))

    def name(folder: str, path: Path = path) -> str:
        return str(json.loads(contents(kitchen.build(path, folder))[cache.COUNTS])["identity"])

    expected = name("whole")
    monkeypatch.setattr(cache, "_CHUNK_ROWS", 7)
    assert name("chunks") == expected
    turned = [dict(reversed(row.items())) for row in many(30)]
    assert name("same", kitchen.write(turned, "b.jsonl")) == expected
    assert name("fewer", kitchen.write(many(30)[:-1], "c.jsonl")) != expected
    swapped = [{"prompt": row["response"], "response": row["prompt"]} if "response" in row else row for row in turned]
    assert name("swapped", kitchen.write(swapped, "d.jsonl")) != expected


def test_what_rows_share_is_the_same_whatever_blocks_are_looked_at(
    kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch
) -> None:
    say = "It depends on how one counts the houses on the other side of the river. " * 4
    rows = [{"prompt": "how many?", "response": f"{say}{i % 3} {i % 4}"} for i in range(40)]
    files = {"train": kitchen.write(rows[:25]), "val": kitchen.write(rows[25:], "b.jsonl")}

    def shared(folder: str) -> list[Any]:
        stores = {
            name: Store(kitchen.build(path, f"{folder}-{name}"), files=[path], format=kitchen.inputs(path))
            for name, path in files.items()
        }
        parts = {name: Dataset(store, cached=False) for name, store in stores.items()}
        parts["test"] = parts["train"].subset(range(3, 20, 2))
        parts["train"] = parts["train"].subset(range(0, 25, 2))
        found = comparison.compare(parts, folder=kitchen.folder / folder)
        return [(each.kind.name, each.part, each.other, each.pairs.tolist(), each.surplus.tolist()) for each in found]

    expected = shared("whole")
    assert {kind for kind, *_ in expected} == {"duplicate", "near_duplicate", "leak", "near_leak"}
    monkeypatch.setattr(cache, "_CHUNK_ROWS", 3)
    monkeypatch.setattr(comparison, "_BLOCK", 2)
    assert shared("blocks") == expected


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS, size=st.integers(1, 5))
def test_samples_do_not_depend_on_how_rows_are_put_together(
    kitchen: Kitchen, tmp_path_factory: pytest.TempPathFactory, rows: list[Any], size: int
) -> None:
    kitchen = Kitchen(tmp_path_factory.mktemp("rows"), kitchen.tokenizer)
    path = kitchen.write(rows)
    with pytest.MonkeyPatch.context() as patch:
        whole = samples(kitchen, kitchen.build(path, "whole"))
        patch.setattr(cache, "_CHUNK_ROWS", size)
        assert samples(kitchen, kitchen.build(path, "chunks")) == whole
    alone = []
    for i, row in enumerate(rows):
        alone += samples(kitchen, kitchen.build(kitchen.write([row], f"{i}.jsonl"), f"alone{i}"))
    assert alone == whole


def samples(kitchen: Kitchen, folder: Path) -> list[Any]:
    """Everything about each sample but the number of its row and line."""
    store = Store(folder, files=[], format=kitchen.inputs(kitchen.write([BAD], "none.jsonl")))
    names = [name for name in cache.SCHEMA.names if name not in ("file", "line", "row")]
    columns = [store.column(name).to_pylist() for name in names]
    return list(zip(*columns, strict=True))


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS, order=st.randoms(), seed=st.integers(0, 5))
def test_permuted_rows_have_the_same_plan_after_sorting_by_content(
    kitchen: Kitchen, tmp_path_factory: pytest.TempPathFactory, rows: list[Any], order: Any, seed: int
) -> None:
    kitchen = Kitchen(tmp_path_factory.mktemp("rows"), kitchen.tokenizer)
    shuffled = list(rows)
    order.shuffle(shuffled)

    def plan(given: list[Any], name: str) -> list[list[bytes]]:
        path = kitchen.write(given, f"{name}.jsonl")
        store = Store(kitchen.build(path, name), files=[path], format=kitchen.inputs(path))
        data = Dataset(store, cached=False)
        identity = np.array([data.digest(i) for i in range(len(data))])
        data = data.subset(np.argsort(identity, kind="stable"))
        steps = Plan(
            lengths=data.lengths, num_supervised=data.num_supervised, batch_size=3, max_tokens=256, pad_to_multiple=8,
            seed=seed, accumulate=3,
        )  # fmt: skip
        return [
            [data.digest(i) for row in batch.rows for i in row]
            for epoch in (0, 1)
            for batch in steps.micro_batches(epoch)
        ]

    assert plan(rows, "given") == plan(shuffled, "shuffled")


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_changed_byte_in_the_data_changes_the_key(kitchen: Kitchen, data: st.DataObject) -> None:
    path = kitchen.write([{"prompt": f"question {i}", "response": "好" * i + "a"} for i in range(20)])
    before, raw = kitchen.key(path), bytearray(path.read_bytes())
    assert kitchen.key(path) == before
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(raw)
    assert kitchen.key(path) != before


def test_whatever_else_decides_the_samples_changes_the_key(
    kitchen: Kitchen, chatml: Tokenizer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = kitchen.write([{"prompt": "q", "response": "a"}])
    keys = [kitchen.key(path), kitchen.key(path, max_length=49), kitchen.key(path, encoding="gb18030")]
    with monkeypatch.context() as patch:
        patch.setattr(kitchen, "tokenizer", chatml)
        keys.append(kitchen.key(path))
        patch.setattr(kitchen, "template", templates.find("jinja", chatml, "glm"))
        keys.append(kitchen.key(path))
    monkeypatch.setattr(type(kitchen.template), "settings", property(lambda self: "another switch"))
    keys.append(kitchen.key(path))
    code = tmp_path / "rule.py"
    code.write_text("# another rule", encoding="utf-8")
    monkeypatch.setattr(cache, "_version", lambda: [fingerprint(code)])
    keys.append(kitchen.key(path))
    assert len(set(keys)) == len(keys)


def test_a_file_is_hashed_again_only_when_it_was_touched(
    kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path, read = kitchen.write([BAD]), []
    monkeypatch.setattr(cache, "fingerprint", lambda file: (read.append(file), fingerprint(file))[1])
    old = time.time() - 100
    monkeypatch.setattr(cache.time, "time", lambda: time_of[0])
    time_of = [path.stat().st_ctime + 1.0]
    first = cache.remembered_fingerprint(path, folder=tmp_path)
    assert cache.remembered_fingerprint(path, folder=tmp_path) == first
    assert len(read) == 2, "written a moment ago: another write may come in the same tick"
    time_of[0] += 10
    for _ in range(3):
        assert cache.remembered_fingerprint(path, folder=tmp_path) == first == fingerprint(path)
    assert len(read) == 3
    stat = path.stat()
    path.write_bytes(path.read_bytes().replace(b"q", b"p"))  # as many bytes
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # and the old time
    assert cache.remembered_fingerprint(path, folder=tmp_path) == fingerprint(path) != first
    os.utime(path, (old, old))


@given(masks=st.lists(st.lists(st.booleans(), max_size=5), max_size=6))
def test_a_label_in_the_first_position_is_not_counted(masks: list[list[bool]]) -> None:
    offsets = np.cumsum([0, *map(len, masks)]).astype(np.int32)
    learned = np.array([each for mask in masks for each in mask], np.bool_)
    assert rows.supervised(learned, offsets).tolist() == [sum(mask[1:]) for mask in masks]


def test_a_folder_that_cannot_be_written_serves_what_lies_in_it(
    kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = kitchen.write(many(9))
    made = kitchen.build(path, "shared")

    def refused(*_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system", "/shared")

    for module, name in ((cache, "write_json"), (cache, "lock"), (comparison.np, "savez")):
        monkeypatch.setattr(module, name, refused)
    os.utime(path, (1, 1))
    inputs = kitchen.inputs(path)
    again = cache.build(inputs.paths, format=inputs, encoder=kitchen.encoder(), folder=kitchen.folder / "shared")
    assert again == (made, True)
    part = Dataset(Store(made, files=[path], format=kitchen.inputs(path)), cached=True)
    shared = comparison.compare({"train": part}, folder=kitchen.folder / "shared")
    assert comparison.compare({"train": part}, folder=kitchen.folder / "other") == shared == []
    assert "compared again at the next start" in capsys.readouterr().err
