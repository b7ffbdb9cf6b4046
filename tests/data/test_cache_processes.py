"""What several processes do, and what is left of those that were killed."""

from __future__ import annotations

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

import pytest
from kitchen import Kitchen, contents, many
from tiny_runs import ROOT

from glm_lightning.data import cache, parallel
from glm_lightning.files import lock
from glm_lightning.tokenizers import Tokenizer
from glm_lightning.types import UserError


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
        from glm_lightning.data import cache
        from kitchen import Kitchen

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
