"""Jobs that run at the same time, each with its share of the machine."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from glm_lightning.config import entry_point, quote
from glm_lightning.sweeps.jobs import Job, Status, name, outcome, record
from glm_lightning.sweeps.processes import Process, terminated_as_interrupted

_LOOKS_A_SECOND = 10
_APART = {"SLURM_JOB_NAME": "bash"} if "SLURM_NTASKS" in os.environ else {}
"""Lets Lightning start a job's ranks itself inside a task of SLURM: as where somebody types commands, srun did not."""


@dataclass
class _Running:
    number: int
    swept: list[str]
    words: list[str]
    path: Path
    log: Path
    process: Process
    begun: float
    slot: int
    pruned: str = ""


@final
class Pool:
    """Starts jobs of the sweep in ``folder``, ``size`` at the most at once, and records how they end.

    While it is entered, SIGTERM and SIGHUP are KeyboardInterrupts, and jobs that still run at its end are stopped.
    """

    def __init__(self, folder: Path, *, size: int) -> None:
        self.folder, self.size = folder, size
        self._running: dict[int, _Running] = {}
        self._held = contextlib.ExitStack()
        self._held.enter_context(terminated_as_interrupted())
        # between two jobs it is Hydra that an interrupt ends
        atexit.register(self.stop)

    @property
    def is_full(self) -> bool:
        """Whether no further job may start now."""
        return len(self._running) >= self.size

    def start(self, number: int, swept: Sequence[str], overrides: Sequence[str]) -> Path:
        """Run ``train.py`` with ``overrides``, or go on with what an earlier attempt has left; the run folder.

        ``swept`` are the overrides that tell the job from the others; they name it.
        """
        assert not self.is_full
        path = self.folder / name(number, swept)
        log = path.with_name(f"{path.name}.log")
        self.folder.mkdir(parents=True, exist_ok=True)
        goes_on = (path / "config.yaml").is_file()
        place = quote(f"{'resume' if goes_on else 'run_dir'}={path}", multirun=False)
        words = [place] if goes_on else [*overrides, place]
        begins = "goes on" if goes_on else "begins"
        print(f"\njob {number} {begins}: {' '.join(swept) or 'no overrides'}\n  in {path}", flush=True)
        slot = min(set(range(self.size)) - {job.slot for job in self._running.values()})
        process = Process(
            [sys.executable, str(entry_point()), *words],
            log,
            environment=_APART | share(slot, self.size),
            shown=self.size == 1,
        )
        self._running[number] = _Running(
            number, list(swept), list(overrides), path, log, process, time.monotonic(), slot
        )
        return path

    def prune(self, number: int, reason: str) -> None:
        """End a job that is not worth its time; it is recorded when it has ended."""
        job = self._running[number]
        job.pruned = reason
        job.process.ask(signal.SIGTERM)

    def ended(self) -> list[Job]:
        """The jobs that have ended since the last call, recorded."""
        return [
            self._end(job, code) for job in list(self._running.values()) if (code := job.process.ended()) is not None
        ]

    def wait(self, *, below: int) -> list[Job]:
        """Wait until fewer than ``below`` jobs run; those that have ended in the meantime."""
        found = self.ended()
        while len(self._running) >= below:
            self.pause()
            found += self.ended()
        return found

    @staticmethod
    def pause() -> None:
        """Wait a moment before the next look."""
        time.sleep(1 / _LOOKS_A_SECOND)

    def stop(self) -> list[Job]:
        """Stop all jobs, which write their checkpoints, and hand signals back."""
        for job in self._running.values():
            job.process.ask(signal.SIGINT)
        stopped = []
        for job in list(self._running.values()):
            job.process.stop()
            stopped.append(self._recorded(job, "stopped", {}, "with the sweep"))
        self.close()
        return stopped

    def close(self) -> None:
        """Hand signals back."""
        self._held.close()
        atexit.unregister(self.stop)

    def _end(self, job: _Running, code: int) -> Job:
        status, metrics, reason = outcome(code, job.path, job.log)
        if job.pruned and status != "done":
            status, reason = "pruned", job.pruned
        return self._recorded(job, status, metrics, reason)

    def _recorded(self, running: _Running, status: Status, metrics: dict[str, float], reason: str) -> Job:
        del self._running[running.number]
        seconds = round(time.monotonic() - running.begun, 1)
        job = Job(running.number, status, running.swept, str(running.path), seconds, metrics, reason, running.words)
        record(job, self.folder)
        told = f": {job.reason}" if job.reason else ""
        print(f"job {job.number}: {job.status} after {job.seconds:.0f} s{told}", flush=True)
        return job


def share(slot: int, slots: int) -> dict[str, str]:
    """Environment variables that give one of several jobs its part of the GPUs, or of the CPU's cores.

    A single job sees what the sweep sees. With more jobs than GPUs, some share one.
    """
    if slots == 1:
        return {}
    gpus = _gpus()
    if not gpus:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(max(1, cores // slots))}
    first, last = slot * len(gpus) // slots, (slot + 1) * len(gpus) // slots
    mine = gpus[first:last] or [gpus[slot % len(gpus)]]
    return {"CUDA_VISIBLE_DEVICES": ",".join(mine)}


def _gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA names them."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in visible.split(",") if name and name != "-1"]
    import torch

    return list(map(str, range(torch.cuda.device_count())))
