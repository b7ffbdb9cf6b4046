"""What became of a sweep's jobs: a JSON file beside each job's folder, so that jobs on other machines write theirs."""

from __future__ import annotations

import math
import re
import signal
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from glm_lightning.files import read_json, write_json

RANKED_BY = "val/loss"
_LONGEST_NAME = 80

Status = Literal["done", "pruned", "failed", "killed", "stopped"]
"""``pruned``: a search gave it up; ``failed``: it ended with an error; ``killed``: by a signal that was not ours;
``stopped``: with the sweep."""


@dataclass(frozen=True)
class Job:
    """What became of one job."""

    number: int
    status: Status
    overrides: list[str]  # those that tell it from the others
    path: str  # the run folder
    seconds: float
    metrics: dict[str, float] = field(default_factory=dict)
    reason: str = ""  # why it is not done
    words: list[str] = field(default_factory=list)  # all overrides: what runs it again

    @property
    def score(self) -> float:
        """What jobs are ranked by; NaN where it is not known."""
        return self.metrics.get(RANKED_BY, math.nan) if self.status == "done" else math.nan

    def is_settled(self, *, retry: bool) -> bool:
        """Whether a sweep that goes on leaves it as it is; ``retry``: run those that failed again."""
        return self.status in ("done", "pruned") or (self.status == "failed" and not retry)


COSTS = ("trained_parameters", "tokens_per_s", "peak_gib", "written_bytes")
"""Of a run's report, beside its metrics: what the result has cost."""


def record(job: Job, folder: Path) -> None:
    """Write a job's outcome into the sweep's folder, over what an earlier attempt has left."""
    write_json(folder / f"{Path(job.path).name}.json", asdict(job))


def recorded(folder: Path) -> list[Job]:
    """The jobs of a sweep that have ended, in their order."""
    files = [file for file in folder.glob("*.json") if re.match(r"\d{2,}(_|\.json)", file.name)]
    return sorted((Job(**read_json(file)) for file in files), key=lambda job: job.number)


def settled(number: int, overrides: Sequence[str], folder: Path, *, retry: bool) -> Job | None:
    """The outcome of a job that needs no further attempt, None where there is none yet."""
    path = folder / name(number, overrides)
    file = folder / f"{path.name}.json"
    if file.is_file():
        job = Job(**read_json(file))
        return job if job.is_settled(retry=retry) else None
    if (path / "report.json").is_file():  # it came to its end when the sweep itself had been killed
        status, metrics, reason = outcome(0, path, path)
        return Job(number, status, list(overrides), str(path), math.nan, metrics, reason)
    return None


def ranked(jobs: Sequence[Job]) -> list[Job]:
    """By validation loss, the lowest first; then those that have none, then those that came to no end."""
    return sorted(jobs, key=lambda job: (job.status != "done", math.isnan(job.score), job.score, job.number))


def name(number: int, overrides: Sequence[str]) -> str:
    """A folder's name: ``01_method=lora,lr=0.001``, with the last part of each key."""
    short = [re.sub(r"^([~+]*)(?:[^=]*[./])?([^=./]+=)", r"\1\2", override) for override in overrides]
    text = re.sub(r"[^\w=.,+-]+", "-", ",".join(short))[:_LONGEST_NAME].rstrip("-.,")
    return f"{number:02d}_{text}" if text else f"{number:02d}"


def outcome(code: int, path: Path, log: Path) -> tuple[Status, dict[str, float], str]:
    """Status, metrics and reason of a job whose process has ended with ``code``."""
    if code < 0:
        guess = " (out of memory?)" if -code == signal.SIGKILL else ""
        return "killed", {}, f"killed by {signal.Signals(-code).name}{guess}"
    if code > 0:
        return "failed", {}, f"exit code {code}: {last_words(log)}"
    try:
        report = read_json(path / "report.json")
        metrics = report["metrics"] | {f"run/{name}": report[name] for name in COSTS if name in report}
    except (OSError, ValueError, KeyError, TypeError) as error:
        return "failed", {}, f"ended without a readable report.json: {error}"
    return "done", {key: value for key, value in metrics.items() if isinstance(value, int | float)}, ""


def last_words(log: Path) -> str:
    """The error at the end of a console output: what a traceback ends with, or the last lines."""
    text = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n")
    lines = [line for line in text.splitlines() if line.strip()]
    traces = [number for number, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")]
    if traces:
        ends = [line for line in lines[traces[-1] + 1 :] if not line[0].isspace()]
        return ends[0] if ends else lines[-1]
    errors = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    last = lines[errors[-1] :] if errors else lines[-3:]
    return " | ".join(line.strip() for line in last) or "no output"
