from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_runs import ROOT

from glm_lightning import templates
from glm_lightning.data import cache, comparison, judging, parallel, rows
from glm_lightning.data.dataset import Dataset, Store
from glm_lightning.data.encoding import Encoder
from glm_lightning.data.findings import Findings
from glm_lightning.data.inputs import Inputs, sources_of
from glm_lightning.data.plan import Plan
from glm_lightning.files import fingerprint, lock
from glm_lightning.tokenizers import Tokenizer
from glm_lightning.types import UserError

TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=60).filter(lambda text: text.strip() != "")
ROWS = st.lists(st.fixed_dictionaries({"prompt": TEXT, "response": TEXT}), min_size=1, max_size=12)
BAD = {"prompt": "q"}


class Kitchen:
    """Encodes files in a folder of its own."""

    def __init__(self, folder: Path, tokenizer: Tokenizer) -> None:
        self.folder, self.tokenizer = folder, tokenizer
        self.template = templates.find("glm4", tokenizer, "glm")

    def encoder(self, max_length: int = 48) -> Encoder:
        return Encoder(tokenizer=self.tokenizer, template=self.template, max_length=max_length)

    def write(self, rows: list[Any], name: str = "a.jsonl") -> Path:
        path = self.folder / name
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return path

    def inputs(self, *paths: Path, **knobs: Any) -> Inputs:
        return Inputs.of(sources_of(list(paths), key="data.train", **({"format": "prompt_response"} | knobs)))

    def build(self, path: Path, name: str, **knobs: Any) -> Path:
        inputs = self.inputs(path)
        target, cached = cache.build(
            inputs.paths, format=inputs, encoder=self.encoder(), folder=self.folder / name, **knobs
        )
        assert not cached
        return target

    def key(self, path: Path, *, max_length: int = 48, **knobs: Any) -> str:
        inputs = self.inputs(path, **knobs)
        return cache.key_of(inputs.paths, format=inputs, encoder=self.encoder(max_length), folder=self.folder / "k")


@pytest.fixture
def kitchen(tmp_path: Path, glm4_tokenizer: Tokenizer) -> Kitchen:
    return Kitchen(tmp_path, glm4_tokenizer)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def many(count: int) -> list[Any]:
    rows: list[Any] = [
        {"prompt": f"question {i} " + "长" * (i % 90), "response": f"answer {i % 7} 好\x01 <|user|>"}
        for i in range(count)
    ]
    rows[3], rows[count // 2] = BAD, {"prompt": "q", "response": 3}
    return rows


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


def test_an_encoding_that_breaks_off_leaves_nothing_and_the_next_one_is_whole(
    kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_CHUNK_ROWS", 5)
    path = kitchen.write(many(40))
    sound = contents(kitchen.build(path, "sound"))

    def breaks(self: Any, share: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cache.Bar, "show", breaks)
        with pytest.raises(KeyboardInterrupt):
            kitchen.build(path, "broken")
    assert list((kitchen.folder / "broken").rglob("*.arrow")) == []
    assert contents(kitchen.build(path, "broken")) == sound


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux only")
def test_a_killed_process_is_told_and_leaves_nothing(kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_CHUNK_ROWS", 5)
    main = os.getpid()

    def killed(self: Any, chunk: Any) -> Any:
        assert os.getpid() != main
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(cache.Work, "__call__", killed)
    with pytest.raises(UserError, match="was killed"):
        kitchen.build(kitchen.write(many(40)), "killed", processes=2)
    assert list((kitchen.folder / "killed").rglob("*.arrow")) == []


def test_an_encoding_that_is_killed_leaves_nothing_that_is_believed(kitchen: Kitchen, tiny_glm: Path) -> None:
    path = kitchen.write([{"prompt": f"q {i}", "response": "a " * 400} for i in range(20_000)])
    script = f"""
        from pathlib import Path
        from glm_lightning import templates, tokenizers
        from glm_lightning.data import cache
        from glm_lightning.data.encoding import Encoder
        from glm_lightning.data.inputs import Inputs, sources_of

        tokenizer = tokenizers.load({str(tiny_glm)!r})
        encoder = Encoder(tokenizer=tokenizer, template=templates.find("glm4", tokenizer, "glm"), max_length=48)
        inputs = Inputs.of(sources_of({str(path)!r}, key="data.train", format="prompt_response"))
        print("begins", flush=True)
        cache.build(inputs.paths, format=inputs, encoder=encoder, folder=Path({str(kitchen.folder / "killed")!r}))
    """
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, cwd=ROOT)
    assert child.stdout is not None
    with child.stdout:
        child.stdout.readline()
        deadline = time.monotonic() + 60
        while not list(kitchen.folder.glob("killed/.*.part")) and time.monotonic() < deadline:
            time.sleep(0.01)
        child.kill()
        child.wait()
    assert list((kitchen.folder / "killed").glob(f"*/{cache.COUNTS}")) == []
    inputs = kitchen.inputs(path)
    key = cache.key_of(inputs.paths, format=inputs, encoder=kitchen.encoder(), folder=kitchen.folder / "killed")
    assert not (kitchen.folder / "killed" / key).exists()


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux only")
def test_of_several_processes_one_encodes_and_the_others_wait(glm4_tokenizer: Tokenizer, tmp_path: Path) -> None:
    kitchen = Kitchen(tmp_path, glm4_tokenizer)
    path = kitchen.write([{"prompt": f"q {i}", "response": "a " * 20} for i in range(2000)])
    script = f"""
        import sys
        sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(ROOT / "tests")!r}]
        from pathlib import Path
        from glm_lightning import tokenizers
        from test_cache import Kitchen, cache

        kitchen = Kitchen(Path({str(tmp_path)!r}), tokenizers.load({str(tmp_path / "model")!r}))
        inputs = kitchen.inputs(Path({str(path)!r}))
        folder = Path({str(tmp_path / "shared")!r})
        print(cache.build(inputs.paths, format=inputs, encoder=kitchen.encoder(), folder=folder)[1])
    """
    glm4_tokenizer.save(tmp_path / "model")
    command = [sys.executable, "-c", textwrap.dedent(script)]
    ranks = [subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, text=True) for _ in range(2)]
    said = [rank.communicate(timeout=120)[0].split()[-1] for rank in ranks]
    assert sorted(said) == ["False", "True"]


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux only")
def test_processes_end_with_the_first_one_even_if_it_is_killed(tmp_path: Path) -> None:
    script = """
    import itertools, os, time
    from glm_lightning.data import parallel
    def work(item):
        time.sleep(0.01)
        return os.getpid()
    for _, pid in parallel.ordered(work, itertools.count(), processes=2):
        print(pid, flush=True)
    """
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, cwd=ROOT)
    assert child.stdout is not None
    with child.stdout:
        pids = {int(child.stdout.readline()) for _ in range(10)}
        child.kill()
        child.wait()
    deadline = time.monotonic() + 20
    while (left := [pid for pid in pids if _runs(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []


def _runs(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_what_killed_encodings_left_is_removed_in_time(kitchen: Kitchen) -> None:
    folder = kitchen.folder / "left"
    old, new = folder / ".old.1.part", folder / ".new.2.part"
    for part in (old, new):
        part.mkdir(parents=True)
    os.utime(old, (0, 0))
    kitchen.build(kitchen.write([{"prompt": "q", "response": "a"}]), "left")
    assert (old.exists(), new.exists()) == (False, True)


@given(masks=st.lists(st.lists(st.booleans(), max_size=5), max_size=6))
def test_a_label_in_the_first_position_is_not_counted(masks: list[list[bool]]) -> None:
    offsets = np.cumsum([0, *map(len, masks)]).astype(np.int32)
    learned = np.array([each for mask in masks for each in mask], np.bool_)
    assert rows.supervised(learned, offsets).tolist() == [sum(mask[1:]) for mask in masks]


def test_results_come_in_order_and_few_items_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for item in range(40):
            taken += 1
            yield item

    if multiprocessing.get_start_method(allow_none=True) not in (None, "fork"):
        pytest.skip("needs fork")
    for number, (item, result) in enumerate(parallel.ordered(_doubled, items(), processes=2)):
        assert (item, result) == (number, 2 * number)
        assert taken <= number + 6


def _doubled(item: int) -> int:
    return 2 * item


def test_little_work_is_not_worth_a_process() -> None:
    assert parallel.choose(None, size=1000) == 1
    assert parallel.choose(5, size=1000) == 5
    if sys.platform == "linux":
        assert parallel.choose(None, size=1 << 30) == min(len(os.sched_getaffinity(0)), 16)


def test_who_waits_for_another_encoding_is_told_once_for_whom(
    kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cache, "_QUIET_SECONDS", 0.05)
    path = kitchen.write(many(9))
    inputs, folder = kitchen.inputs(path), kitchen.folder / "waited"
    key = cache.key_of(inputs.paths, format=inputs, encoder=kitchen.encoder(), folder=folder)
    held = folder / f"{key}.lock"
    with lock(held):
        held.write_text("process 7 on here", encoding="utf-8")
        waiter = threading.Thread(target=kitchen.build, args=(path, "waited"))
        waiter.start()
        time.sleep(0.5)
    waiter.join(timeout=60)
    assert (folder / key / cache.COUNTS).is_file()
    assert capsys.readouterr().err.count("data: waits for process 7 on here") == 1
    assert held.read_text(encoding="utf-8").startswith(f"process {os.getpid()} on ")


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


def test_a_containers_limit_bounds_the_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "_GROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)), raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    large = 1 << 30
    assert parallel.choose(None, size=large) == 12
    (tmp_path / "cpu").mkdir()
    for name, value in (("cpu/cpu.cfs_quota_us", "-1"), ("cpu/cpu.cfs_period_us", "100000")):
        (tmp_path / name).write_text(value, encoding="ascii")
    assert parallel.choose(None, size=large) == 12
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("400000", encoding="ascii")
    assert parallel.choose(None, size=large) == 4
    for text, most in (("max 100000\n", 4), ("250000 100000\n", 2), ("50000 100000\n", 1)):
        (tmp_path / "cpu.max").write_text(text, encoding="ascii")
        assert parallel.choose(None, size=large) == most
