"""Exports that are killed, or that meet others on their way to the same folder."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path

import pytest
from forked import PROCESSES

from glm_lightning.export import description, export_adapter, export_model
from glm_lightning.files import atomic_folder
from glm_lightning.runs import RunFolder
from glm_lightning.types import UserError

KILLS = 8


@pytest.fixture
def run(train) -> RunFolder:
    return train("run", "trainer.max_steps=1", "trainer.precision=32-true")


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def export(run: RunFolder, out: Path, said) -> None:
    """In a process of its own, in files of a few tensors each."""
    said.send("begins")
    try:
        said.send(export_model(str(run.path), out, shard_size=20_000).notice)
    except UserError as error:
        said.send(error)


def started(run: RunFolder, out: Path):
    """An export that has begun, and what it says."""
    ours, theirs = PROCESSES.Pipe()
    process = PROCESSES.Process(target=export, args=(run, out, theirs))
    process.start()
    theirs.close()
    assert ours.recv() == "begins"
    return process, ours


def finished(run: RunFolder, out: Path) -> float:
    """An export that nobody disturbs; its seconds."""
    process, said = started(run, out)
    begun = time.monotonic()
    assert isinstance(said.recv(), str)
    process.join()
    return time.monotonic() - begun


@pytest.mark.slow  # on a busy machine no kill may come while something is written
def test_a_killed_export_leaves_all_or_nothing_and_the_next_one_cleans_up(run, tmp_path):
    out = tmp_path / "exports" / "out"
    seconds = finished(run, out)
    whole = contents(out)
    assert len(whole) > 10
    rng, num_halves = random.Random(0), 0
    for _ in range(KILLS):
        shutil.rmtree(out, ignore_errors=True)
        process, _ = started(run, out)
        time.sleep(rng.uniform(0, 1.05) * seconds)
        process.kill()
        process.join()
        assert not out.exists() or contents(out) == whole
        num_halves += any(out.parent.glob(".out.*.part/*"))
    assert num_halves
    shutil.rmtree(out, ignore_errors=True)
    finished(run, out)
    assert contents(out) == whole
    assert list(out.parent.iterdir()) == [out]


def test_what_a_killed_export_left_is_removed_by_the_next(run, tmp_path):
    (tmp_path / ".out.4711.part").mkdir()
    (tmp_path / ".out.4711.part" / "part-0.safetensors").write_bytes(b"half")
    (tmp_path / ".out.2.4711.part").mkdir()
    export_adapter(str(run.path), tmp_path / "out")
    left = {path.name for path in tmp_path.iterdir() if "out" in path.name}
    assert left == {"out", ".out.2.4711.part"}


def test_two_at_once(run, tmp_path):
    both = [started(run, tmp_path / "out") for _ in range(2)]
    said = [pipe.recv() for _, pipe in both]
    for process, _ in both:
        process.join()
    (error,) = [each for each in said if isinstance(each, UserError)]
    assert "give another folder" in str(error)
    assert (tmp_path / "out" / "README.md").is_file()
    assert not list(tmp_path.glob(".out.*"))


def test_another_that_is_under_way_is_told_at_once(run, tmp_path):
    with (
        atomic_folder(tmp_path / "out") as part,
        pytest.raises(UserError, match=r"another process is writing it, into \.out\.\d+\.part; give another folder"),
    ):
        export_model(str(run.path), tmp_path / "out")
    assert part.name.startswith(".out.")


def test_another_that_was_faster_is_left_as_it_is(run, tmp_path, monkeypatch):
    def faster(*_, **__) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "theirs").touch()

    monkeypatch.setattr(description, "write_card", faster)
    with pytest.raises(UserError, match="has come to exist meanwhile; it is left as it is; give another folder"):
        export_model(str(run.path), tmp_path / "out")
    assert list(contents(tmp_path / "out")) == ["theirs"]
    assert not list(tmp_path.glob(".out.*"))
