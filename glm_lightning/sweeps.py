"""Sweeps: jobs one after another, each in a process of its own, and a ranked table at the end.

A process of its own, because Lightning's distributed launcher starts its ranks from the command line (which would be
the sweep's), and so that a job that is killed or leaks memory takes no other with it.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, final

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from glm_lightning.config import entry_point, quote
from glm_lightning.config.command_line import sources
from glm_lightning.config.quoting import parsed
from glm_lightning.files import read_json, write_json, write_text

RANKED_BY = "val/loss"
IN_TABLE = (RANKED_BY, "val/token_accuracy", "test/rouge_l", "test/bleu")
"""Metrics that the table shows; sweep.csv has all."""
RESULTS = "sweep.json"
_GRACE_SECONDS = 30.0
_INTERRUPTED = 128 + signal.SIGINT
_LONGEST_NAME = 80


@dataclass(frozen=True)
class Job:
    """What became of one job."""

    number: int
    status: Literal["done", "failed", "stopped"]
    overrides: list[str]  # those that tell it from the others
    path: str  # the run folder
    seconds: float
    metrics: dict[str, float] = field(default_factory=dict)
    reason: str = ""  # why it failed

    @property
    def score(self) -> float:
        """What jobs are ranked by; NaN where it is not known."""
        return self.metrics.get(RANKED_BY, math.nan) if self.status == "done" else math.nan


def run_job() -> float:
    """Run the job that Hydra has composed and record its outcome in the sweep folder; for the entry point.

    Never raises for a job that fails. Returns its validation loss (NaN on failure), which is what a sweeper minimises.

    Raises:
        SystemExit: Ctrl-C; the job is stopped and the table printed before.
    """
    hydra = HydraConfig.get()
    folder = Path(hydra.sweep.dir).absolute()
    overrides = [override for override in hydra.overrides.task if not override.startswith("sweep=")]
    swept = _differing(overrides, sys.argv)
    job = run([*sources(sys.argv), *overrides], swept=swept, number=int(hydra.job.num), folder=folder)
    _record(job, folder)
    if job.status == "stopped":
        report(folder)
        sys.exit(_INTERRUPTED)
    return job.score


def _differing(overrides: Sequence[str], argv: Sequence[str]) -> list[str]:
    """Overrides of a job that the command line does not give all jobs."""
    typed = [override for argument in argv if (override := parsed(argument)) is not None]
    fixed = {override.get_key_element() for override in typed if not override.is_sweep_override()}
    return [override for override in overrides if override.partition("=")[0] not in fixed]


def run(overrides: Sequence[str], *, swept: Sequence[str], number: int, folder: Path) -> Job:
    """Run ``train.py`` with these overrides in a process of its own; its console output is shown and kept in a file.

    ``swept`` are the overrides that tell the job from the others; they name it.
    """
    path = folder / _name(number, swept)
    log = path.with_name(f"{path.name}.log")
    folder.mkdir(parents=True, exist_ok=True)
    print(f"\njob {number}: {' '.join(swept) or 'no overrides'}\n  in {path}", flush=True)
    command = [sys.executable, str(entry_point()), *overrides, quote(f"run_dir={path}", multirun=False)]
    start = time.monotonic()
    try:
        code: int | None = _execute(command, log)
    except KeyboardInterrupt:
        code = None
    seconds = round(time.monotonic() - start, 1)
    metrics, reason = _outcome(code, path, log)
    status: Literal["done", "failed", "stopped"] = "stopped" if code is None else "failed" if reason else "done"
    job = Job(number, status, list(swept), str(path), seconds, metrics, reason)
    print(f"job {number}: {status} after {seconds:.0f} s{f': {reason}' if reason else ''}", flush=True)
    return job


def _name(number: int, overrides: Sequence[str]) -> str:
    """A folder name: ``01_method=lora,lr=0.001``, with the last part of each key."""
    short = [re.sub(r"^([~+]*)(?:[^=]*[./])?([^=./]+=)", r"\1\2", override) for override in overrides]
    text = re.sub(r"[^\w=.,+-]+", "-", ",".join(short))[:_LONGEST_NAME].rstrip("-.,")
    return f"{number:02d}_{text}" if text else f"{number:02d}"


# -- one process


def _execute(command: Sequence[str], log: Path) -> int:
    """Run to the end, its output shown and written to ``log``. Ctrl-C (or SIGTERM) stops it and is raised again."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        process_group=0,  # so that the ranks that the job has started can be stopped with it
    )
    assert process.stdout is not None
    reader = threading.Thread(target=_copy, args=(process.stdout, log))
    reader.start()
    try:
        with _terminate_as_interrupt():
            return process.wait()
    except KeyboardInterrupt:
        _stop(process)
        raise
    finally:
        _signal_group(process, signal.SIGKILL)  # ranks that outlived the job would hold its memory and this pipe
        reader.join()


@contextlib.contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    # Who ignores a signal (nohup) goes on ignoring it.
    heeded = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, signal.default_int_handler) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Give the job time to end by itself after Ctrl-C."""
    _signal_group(process, signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
        process.wait(_GRACE_SECONDS)


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _copy(stream: IO[bytes], log: Path) -> None:
    """Show output as it comes (a progress bar has no line ends) and keep it."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    with stream, log.open("wb") as kept:
        while chunk := os.read(stream.fileno(), 1 << 16):
            kept.write(chunk)
            kept.flush()
            sys.stdout.write(decoder.decode(chunk))
            sys.stdout.flush()


# -- what became of it


def _outcome(code: int | None, path: Path, log: Path) -> tuple[dict[str, float], str]:
    """Metrics of a job that has ended well, else the reason."""
    if code is None:
        return {}, "stopped by the user"
    if code < 0:
        guess = " (out of memory?)" if -code == signal.SIGKILL else ""
        return {}, f"killed by {signal.Signals(-code).name}{guess}"
    if code > 0:
        return {}, f"exit code {code}: {_last_words(log)}"
    try:
        metrics = read_json(path / "report.json")["metrics"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return {}, f"ended without a readable report.json: {error}"
    return {key: value for key, value in metrics.items() if isinstance(value, int | float)}, ""


def _last_words(log: Path) -> str:
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


# -- the sweep


@final
class Report(Callback):
    """Hydra's callback that ends a sweep with its table; only Hydra knows which job is the last."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print and write the table.

        Raises:
            SystemExit: exit code 1 where no job has succeeded. One that has makes the sweep a success.
        """
        if not any(job.status == "done" for job in report(Path(config.hydra.sweep.dir).absolute())):
            sys.exit(1)


def _record(job: Job, folder: Path) -> None:
    write_json(folder / RESULTS, [asdict(other) for other in [*_recorded(folder), job]])


def _recorded(folder: Path) -> list[Job]:
    path = folder / RESULTS
    return [Job(**job) for job in read_json(path)] if path.exists() else []


def ranked(jobs: Sequence[Job]) -> list[Job]:
    """By validation loss, the lowest first; then those that have none, then those that failed."""
    return sorted(jobs, key=lambda job: (job.status != "done", math.isnan(job.score), job.score, job.number))


def report(folder: Path) -> list[Job]:
    """Print the ranked table of a sweep folder and write it as sweep.json and sweep.csv; returns the ranking."""
    jobs = ranked(_recorded(folder))
    write_json(folder / RESULTS, [asdict(job) for job in jobs])
    write_text(folder / "sweep.csv", _csv(jobs))
    _print(jobs, folder)
    return jobs


def _metrics(jobs: Sequence[Job]) -> list[str]:
    """The names of all metrics, the one that ranks first."""
    names = dict.fromkeys(name for job in jobs for name in job.metrics)
    return sorted(names, key=lambda name: (name != RANKED_BY, name))


def _csv(jobs: Sequence[Job]) -> str:
    stream, metrics = io.StringIO(), _metrics(jobs)
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["rank", "job", "status", "overrides", *metrics, "seconds", "path", "reason"])
    for rank, job in enumerate(jobs, start=1):
        values = [job.metrics.get(name, "") for name in metrics]
        writer.writerow(
            [rank, job.number, job.status, " ".join(job.overrides), *values, job.seconds, job.path, job.reason]
        )
    return stream.getvalue()


def _print(jobs: Sequence[Job], folder: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    metrics = [name for name in IN_TABLE if name in _metrics(jobs)]
    table = Table(title="Sweep, best first", title_justify="left")
    for name in ("", "job", "what differs", *metrics, "outcome"):
        table.add_column(name, overflow="fold", justify="right" if name in metrics else "left")
    for rank, job in enumerate(jobs, start=1):
        values = [f"{job.metrics[name]:.4g}" if name in job.metrics else "" for name in metrics]
        outcome = f"{job.status}: {job.reason}" if job.reason else job.status
        place = str(rank) if job.status == "done" else ""
        table.add_row(place, str(job.number), "\n".join(job.overrides), *values, outcome)
    # A pipe has no width of its own, and 80 columns would fold the numbers.
    console = Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else 160)
    console.print(table)
    console.print(f"Runs, console outputs, sweep.csv and sweep.json lie in {folder}", soft_wrap=True)
