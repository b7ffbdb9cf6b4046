"""The ranked table of a sweep: in the terminal, as CSV, JSON and HTML."""

from __future__ import annotations

import csv
import io
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from glm_lightning.config import command
from glm_lightning.config.quoting import unquoted
from glm_lightning.files import write_json, write_text
from glm_lightning.sweeps.jobs import COSTS, RANKED_BY, Job, ranked, recorded
from glm_lightning.sweeps.page import page

IN_TABLE = (RANKED_BY, "test/rouge_l", *(f"run/{name}" for name in COSTS))
"""What the table shows; sweep.csv has all."""
RESULTS = "sweep.json"


def report(folder: Path) -> list[Job]:
    """Print the ranked table of a sweep folder and write it as sweep.json, .csv and .html; returns the ranking."""
    jobs = ranked(recorded(folder))
    write_json(folder / RESULTS, [asdict(job) for job in jobs])
    write_text(folder / "sweep.csv", _csv(jobs))
    write_text(folder / "sweep.html", page(jobs, metrics(jobs)))
    _print(jobs, folder)
    return jobs


def tell_how_to_go_on(folder: Path, argv: Sequence[str]) -> None:
    """Print the command that runs what has not come to its end."""
    words = [word for word in argv if not word.startswith("hydra.sweep.dir=")]
    print(f"The sweep goes on with:\n  {command()} {shlex.join([*words, f'hydra.sweep.dir={folder}'])}", flush=True)


def metrics(jobs: Sequence[Job]) -> list[str]:
    """The names of all metrics, the one that ranks first."""
    names = dict.fromkeys(name for job in jobs for name in job.metrics)
    return sorted(names, key=lambda name: (name != RANKED_BY, name))


def _csv(jobs: Sequence[Job]) -> str:
    stream, names = io.StringIO(), metrics(jobs)
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["rank", "job", "status", "overrides", *names, "seconds", "path", "reason"])
    for rank, job in enumerate(jobs, start=1):
        values = [job.metrics.get(name, "") for name in names]
        writer.writerow(
            [rank, job.number, job.status, " ".join(job.overrides), *values, job.seconds, job.path, job.reason]
        )
    return stream.getvalue()


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _print(jobs: Sequence[Job], folder: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    shown = [name for name in IN_TABLE if name in metrics(jobs)]
    table = Table(title="Sweep, best first", title_justify="left")
    for name in ("", "job", "what differs", *shown, "outcome"):
        table.add_column(name, overflow="fold", justify="right" if name in shown else "left")
    for rank, job in enumerate(jobs, start=1):
        values = [_short(job.metrics[name]) if name in job.metrics else "" for name in shown]
        outcome = f"{job.status}: {job.reason}" if job.reason else job.status
        place = str(rank) if job.status == "done" else ""
        table.add_row(place, str(job.number), "\n".join(job.overrides), *values, outcome)
    # A pipe has no width of its own, and 80 columns would fold the numbers.
    console = Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else 160)
    console.print(table)
    if jobs and jobs[0].status == "done":
        console.print(f"The best is in {jobs[0].path}; again:", soft_wrap=True)
        console.print(f"  {command()} {shlex.join(map(unquoted, jobs[0].words))}", soft_wrap=True)
    console.print(f"Runs, console outputs, sweep.html, .csv and .json lie in {folder}", soft_wrap=True)
