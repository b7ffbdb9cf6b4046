"""Sweeps of real runs of the embedded model: one without memory, one killed, all interrupted; and on two devices."""

from __future__ import annotations

import os
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from miniature import ROOT, heed_interrupts, recorded

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

SHORT = ("outputs=outputs", "data.test=null", "trainer.max_steps=4", "trainer.max_epochs=8", "logger=none")
ROOM = 6 << 30
"""Bytes of addresses that each process gets: 3.7 GB are used by a run of 16 rows a step, 8.4 GB by one of 480."""
BATCHES = (8, 10, 12, 14, 16, 18, 480, 20, 22, 24, 28, 32)
TOO_LARGE, KILLED, INTERRUPTED = BATCHES.index(480), 2, 8


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONUTF8", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def start(*arguments: str, limited: bool = False) -> subprocess.Popen[str]:
    def prepare() -> None:
        heed_interrupts()
        if limited:
            resource.setrlimit(resource.RLIMIT_AS, (ROOM, ROOM))

    with Path("printed").open("a") as printed:
        return subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), *arguments],
            stdout=printed,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=prepare,
        )


def wait(process: subprocess.Popen[str], until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 900
    while not until():
        assert time.monotonic() < deadline, Path("printed").read_text()
        assert process.poll() is None, Path("printed").read_text()
        time.sleep(0.05)


def has_begun(number: int) -> bool:
    return any(Path("outputs/sweeps").glob(f"*/{number:02d}_*/config.yaml"))


def kill_job(process: subprocess.Popen[str], number: int) -> None:
    """As the kernel does when it has no memory left."""
    (job,) = [
        child
        for child in psutil.Process(process.pid).children()
        if any(f"/{number:02d}_" in word for word in child.cmdline())
    ]
    os.kill(job.pid, signal.SIGKILL)


def test_a_sweep_outlives_what_happens_to_its_jobs_and_to_itself() -> None:
    swept = f"data.batch_size={','.join(map(str, BATCHES))}"
    process = start("-m", swept, "data.max_tokens=1000000", *SHORT, limited=True)
    wait(process, lambda: has_begun(KILLED))
    kill_job(process, KILLED)
    wait(process, lambda: has_begun(INTERRUPTED))
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 130, Path("printed").read_text()

    by_number = {job.number: job for job in recorded()}
    assert by_number.keys() == set(range(INTERRUPTED + 1))
    assert (by_number[KILLED].status, by_number[INTERRUPTED].status) == ("killed", "stopped")
    assert by_number[TOO_LARGE].status == "failed"
    assert "out of memory" in by_number[TOO_LARGE].reason

    (command,) = [line for line in Path("printed").read_text().splitlines() if "hydra.sweep.dir=" in line]
    process = start(*shlex.split(command.partition("train.py ")[2]), limited=True)
    assert process.wait(900) == 0, Path("printed").read_text()
    jobs = recorded()
    assert [job.status for job in jobs] == ["done"] * 11 + ["failed"]
    assert {job.number for job in jobs} == set(range(12))
    assert jobs[-1].number == TOO_LARGE
    losses = [job.metrics["val/loss"] for job in jobs[:-1]]
    assert losses == sorted(losses)
    # the table holds them, and the command that makes the best one again
    printed = Path("printed").read_text()
    assert f"python train.py {shlex.join(jobs[0].words)}" in printed
    assert len(Path(jobs[0].path).with_name("sweep.csv").read_text().splitlines()) == 13


def test_jobs_of_two_processes_give_what_one_process_gives() -> None:
    process = start("-m", "trainer=default,ddp_cpu", "optimizer.lr=1e-3,3e-3", "trainer.precision=64-true", *SHORT)
    assert process.wait(600) == 0, Path("printed").read_text()
    jobs = {tuple(job.overrides): job for job in recorded()}
    assert len(jobs) == 4
    assert all(job.status == "done" for job in jobs.values()), Path("printed").read_text()
    for rate in ("optimizer.lr=0.001", "optimizer.lr=0.003"):
        alone, together = (jobs[f"trainer={trainer}", rate] for trainer in ("default", "ddp_cpu"))
        assert together.metrics["val/loss"] == pytest.approx(alone.metrics["val/loss"], abs=1e-9)
        assert "2 x CPU" in Path(f"{together.path}.log").read_text()
        assert "1 x CPU" in Path(f"{alone.path}.log").read_text()
