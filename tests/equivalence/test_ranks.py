"""Two processes: a signal stops both behind one checkpoint, a lost one ends the other, and what is resumed is exact."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch
from tiny_runs import ROOT, dying, largest_difference, weights

from glm_lightning import config
from glm_lightning.runs import RunFolder, SafeCheckpoints

METHODS = sorted(file.stem for file in (ROOT / "conf" / "method").glob("*.yaml"))
KNOBS = ("trainer=ddp_cpu", "trainer.precision=32-true", "trainer.accumulate_grad_batches=2", "trainer.max_steps=-1")
SECONDS = 20.0
"""Within which a rank must have ended after the loss of the other."""


def assert_equal(expected, got):
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)


@pytest.fixture
def start(overrides, tmp_path):
    """Start a run in two processes; gives them, the first one first, when it has written a checkpoint."""
    started = []

    def run(name, *more):
        arguments = overrides(name, *KNOBS, "callbacks.checkpoints.every_n_steps=1", *more)
        command = [sys.executable, str(ROOT / "train.py"), *arguments]
        process = subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        started.append(process)
        last, deadline = RunFolder(tmp_path / name).last, time.monotonic() + 120
        while not last.is_dir() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert last.is_dir(), process.communicate()[0][-3000:]
        children = [p for p in psutil.Process(process.pid).children() if "train.py" in " ".join(p.cmdline())]
        assert len(children) == 1
        return process, children[0]

    yield run
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def resume(folder, cwd):
    command = [sys.executable, str(ROOT / "train.py"), f"resume={folder}"]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return RunFolder(folder)


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_both_and_they_go_on_exactly(start, train_py, tmp_path):
    whole = train_py("whole", *KNOBS, "method.dropout=0.2", "trainer.max_epochs=8")
    first, second = start("broken", "method.dropout=0.2", "trainer.max_epochs=8")
    second.send_signal(signal.SIGTERM)
    output = first.communicate(timeout=SECONDS)[0]
    assert first.returncode == 128 + signal.SIGTERM, output[-3000:]
    assert "Stopped. It goes on from its last checkpoint with:" in output
    assert not second.is_running()
    broken = RunFolder(tmp_path / "broken")
    step = SafeCheckpoints().load_checkpoint(broken.last)["global_step"]
    assert 1 <= step < 40
    assert_equal(weights(whole), weights(resume(broken.path, tmp_path)))


@pytest.mark.parametrize("lost", [pytest.param("first", marks=pytest.mark.slow), "second"])
def test_the_other_rank_of_a_lost_one_ends(start, lost):
    first, second = start("lost", "trainer.max_epochs=400")
    begun = time.monotonic()
    (psutil.Process(first.pid) if lost == "first" else second).kill()
    output = first.communicate(timeout=SECONDS)[0]  # ends when both have closed it
    assert time.monotonic() - begun < SECONDS
    assert not second.is_running() or second.status() == psutil.STATUS_ZOMBIE
    assert "error: " in output
    assert "is gone" in output or "ended with -9" in output
    assert "resume=" in output
    if lost == "second":
        assert first.returncode in (1, 2)


def test_another_number_of_processes_goes_on_with_the_same_rows(train, overrides, tmp_path):
    knobs = ("trainer.max_steps=8", "trainer.accumulate_grad_batches=2", "callbacks.checkpoints.every_n_steps=1")
    whole = train("whole", *knobs)
    with dying(3):
        train("one", *knobs)
    command = [sys.executable, str(ROOT / "train.py"), f"resume={tmp_path / 'one'}"]
    command += ["trainer.devices=2", "trainer.strategy=ddp", "trainer.accumulate_grad_batches=4"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    after = RunFolder(tmp_path / "one")
    assert largest_difference(weights(whole), weights(after)) < 1e-10
    assert after.read_report()["metrics"] == pytest.approx(whole.read_report()["metrics"], rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_every_method_in_two_processes(start, train_py, tmp_path, name):
    dropout = [f"method.{key}=0.2" for key in config.compose([f"method={name}"]).method if key == "dropout"]
    knobs = (f"method={name}", *dropout, "trainer.max_epochs=8")
    whole = train_py("whole", *KNOBS, *knobs)
    first, _ = start("broken", *knobs)
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=2 * SECONDS)
    broken = RunFolder(tmp_path / "broken")
    assert not broken.finished
    assert_equal(weights(whole), weights(resume(broken.path, tmp_path)))
