"""What lies where in a run folder."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import torch

from glm_lightning import __version__
from glm_lightning.files import lock, read_json, write_json

PACKAGES = ("torch", "lightning", "transformers", "peft", "tokenizers", "safetensors", "hydra-core")


@dataclass(frozen=True)
class RunFolder:
    """A run on disk. Everything in it is text, JSON or safetensors; nothing needs to be unpickled."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration, written before training starts."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """One JSON object a line for everything that was logged."""
        return self.path / "metrics.jsonl"

    @property
    def report(self) -> Path:
        """The end of the run: final metrics, speed, notices. Its presence says that the run is finished."""
        return self.path / "report.json"

    @property
    def before(self) -> Path:
        """Scores and sample answers of the base, kept for a resumed run."""
        return self.path / "before.json"

    @property
    def data(self) -> Path:
        """Fingerprint and counts of the data."""
        return self.path / "data.json"

    @property
    def ancestors(self) -> Path:
        """The runs that this one goes on from, the oldest first; absent if there are none."""
        return self.path / "ancestors.json"

    @property
    def quarantine(self) -> Path:
        """Bad rows that were left out, with the reason, a JSON object a line; absent if there are none."""
        return self.path / "quarantine.jsonl"

    @property
    def answers(self) -> Path:
        """Answers to the test rows before and after, a JSON object a line."""
        return self.path / "answers.jsonl"

    @property
    def last(self) -> Path:
        """The newest checkpoint."""
        return self.path / "checkpoints" / "last"

    @property
    def best(self) -> Path:
        """The checkpoint with the lowest validation loss."""
        return self.path / "checkpoints" / "best"

    @property
    def refused(self) -> Path:
        """A checkpoint that was the newest and turned out to be torn or foreign; nothing reads it."""
        return self.path / "checkpoints" / "refused"

    @property
    def lock(self) -> Path:
        """Held by the process that runs in this folder."""
        return self.path / ".lock"

    @property
    def running(self) -> bool:
        """Whether a process is running in this folder."""
        try:
            with lock(self.lock, timeout=0):
                return False
        except TimeoutError:
            return True

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self.report.is_file()

    def artefact(self, kind: str) -> Path:
        """Folder of what the run leaves behind: ``adapter`` or ``model``."""
        return self.path / kind

    def read_report(self) -> dict[str, Any]:
        """The end-of-run report."""
        report: dict[str, Any] = read_json(self.report)
        return report

    def write_environment(self) -> None:
        """Record versions, hardware, source revision and the command line."""
        write_json(self.path / "environment.json", environment())


def runs(outputs: Path) -> Iterator[RunFolder]:
    """The runs under ``outputs``, newest first."""
    folders = [RunFolder(file.parent) for file in outputs.glob("**/config.yaml")]
    yield from sorted(folders, key=lambda run: run.config.stat().st_mtime, reverse=True)


def environment() -> dict[str, Any]:
    """Versions, hardware and source revision: what one needs to make a run again."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "python": platform.python_version(),
        "packages": {"glm-lightning": __version__} | {name: importlib.metadata.version(name) for name in PACKAGES},
        "system": platform.platform(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "git": _revision(),
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        if names:
            return names[0]
    return platform.processor() or platform.machine()


def _revision() -> str | None:
    """The commit of the directory that the run was started in, with ``+`` if files differ from it."""
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty=+"], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None
