"""``glm compare``: finished runs side by side, and what each has gained on its task against what it has forgotten."""

from __future__ import annotations

import argparse
import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from glm_lightning.files import write_text
from glm_lightning.runs import RunFolder
from glm_lightning.types import UserError

LOSS, KEPT = "val/loss", "kept/"
"""The loss on a run's own task, and how losses on rows begin that it has not learned."""

_STYLE = """
body { font: 15px/1.5 system-ui, "Noto Sans CJK SC", sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums } svg { max-width: 100%; height: auto }
td, th { padding: .2rem .8rem; border-bottom: 1px solid #ccc; text-align: right } td:first-child { text-align: left }
"""
_WIDTH, _HEIGHT, _SIDE = 720, 420, 64
_COLORS = ("#2e8b57", "#c0392b", "#2c6fbb", "#d4a017", "#7d3c98", "#16a0a0")


@dataclass(frozen=True, slots=True)
class Compared:
    """A finished run: its scores before and after."""

    name: str
    before: Mapping[str, float]
    after: Mapping[str, float]

    @property
    def gained(self) -> float:
        """By how many nats a token the loss of its own task has fallen; NaN without validation."""
        return self.before.get(LOSS, math.nan) - self.after.get(LOSS, math.nan)

    @property
    def kept(self) -> list[str]:
        """Names of the rows it has not learned."""
        return [name for name in self.after if name.startswith(KEPT) and name in self.before]

    @property
    def forgotten(self) -> float:
        """By how many nats a token the loss of those rows has risen, at the most; NaN if there are none."""
        return max((self.after[name] - self.before[name] for name in self.kept), default=math.nan)


def main(argv: Sequence[str]) -> None:
    """Compare runs from the command line."""
    options = _parser().parse_args(argv)
    runs = compared(options.runs)
    if options.html:
        write_text(options.html, page(runs))
    if options.svg:
        write_text(options.svg, plot(runs))
    if options.json:
        print(json.dumps([_plain(run) for run in runs], ensure_ascii=False, indent=2))
        return
    console = Console()
    console.print(_table(runs))
    for file in filter(None, (options.html, options.svg)):
        console.print(f"written: {file}", highlight=False, markup=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="glm compare",
        description="Finished runs side by side: scores before and after, and what each has gained on its own task "
        "against what it has forgotten (kept/...: loss on the rows of the runs before, and on general ones).",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of finished runs")
    parser.add_argument("--html", type=Path, help="write a page with table and plot to this file")
    parser.add_argument("--svg", type=Path, help="write the plot alone to this file")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    return parser


def compared(folders: Sequence[Path]) -> list[Compared]:
    """What the reports of runs say.

    Raises:
        UserError: some are no finished runs, all of which are named.
    """
    unfinished = [folder for folder in folders if not RunFolder(folder).finished]
    if unfinished:
        raise UserError([f"{folder}: no finished run lies there (it would hold report.json)" for folder in unfinished])
    reports = [RunFolder(folder).read_report() for folder in folders]
    return [
        Compared(folder.resolve().name, report["before"], report["metrics"])
        for folder, report in zip(folders, reports, strict=True)
    ]


def _names(runs: Sequence[Compared]) -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in run.after))


def _cell(run: Compared, name: str) -> str:
    if name not in run.after:
        return ""
    before = f"{run.before[name]:.4g} → " if name in run.before else ""
    return f"{before}{run.after[name]:.4g}"


def _table(runs: Sequence[Compared]) -> Table:
    table = Table()
    table.add_column("before → after")
    for run in runs:
        table.add_column(run.name, justify="right", overflow="fold")
    for name in _names(runs):
        table.add_row(name, *(_cell(run, name) for run in runs))
    table.add_section()
    table.add_row("gained on its task", *(_change(run.gained) for run in runs))
    table.add_row("forgotten at most", *(_change(run.forgotten) for run in runs))
    return table


def _change(nats: float) -> str:
    return "" if math.isnan(nats) else f"{nats:+.4g} nats"


def _plain(run: Compared) -> dict[str, Any]:
    return {
        "run": run.name,
        "before": dict(run.before),
        "after": dict(run.after),
        "gained": None if math.isnan(run.gained) else run.gained,
        "forgotten": None if math.isnan(run.forgotten) else run.forgotten,
    }


def page(runs: Sequence[Compared]) -> str:
    """Table and plot as one HTML page that needs nothing else."""
    head = "".join(f"<th>{html.escape(run.name)}</th>" for run in runs)
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td>" + "".join(f"<td>{_cell(run, name)}</td>" for run in runs) + "</tr>"
        for name in _names(runs)
    )
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>glm compare</title>\n<style>{_STYLE}</style>\n'
        f"<h1>Runs</h1>\n{plot(runs)}\n<table><tr><td>before → after</td>{head}</tr>{rows}</table>\n"
    )


def plot(runs: Sequence[Compared]) -> str:
    """Gain on the new task upwards, what was forgotten to the right, as SVG; best is the upper left corner."""
    shown = [run for run in runs if not math.isnan(run.gained + run.forgotten)]
    across, up = _Axis([run.forgotten for run in shown]), _Axis([run.gained for run in shown])
    marks = [
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
        f'<path d="M {_SIDE} {_SIDE // 2} V {_HEIGHT - _SIDE} H {_WIDTH - _SIDE // 2}" stroke="#888" fill="none"/>',
        f'<text x="{_WIDTH // 2}" y="{_HEIGHT - 12}" text-anchor="middle">forgotten (nats a token, at most)</text>',
        f'<text x="16" y="{_HEIGHT // 2}" text-anchor="middle" transform="rotate(-90 16 {_HEIGHT // 2})">gained on its '
        "task (nats a token)</text>",
    ]
    for value in (across.low, across.high):
        x = _SIDE + across.place(value) * (_WIDTH - 2 * _SIDE)
        marks.append(f'<text x="{x:.0f}" y="{_HEIGHT - _SIDE + 20}" text-anchor="middle">{value:.2f}</text>')
    for value in (up.low, up.high):
        y = _HEIGHT - _SIDE - up.place(value) * (_HEIGHT - 2 * _SIDE)
        marks.append(f'<text x="{_SIDE - 8}" y="{y:.0f}" text-anchor="end">{value:.2f}</text>')
    for number, run in enumerate(shown):
        x = _SIDE + across.place(run.forgotten) * (_WIDTH - 2 * _SIDE)
        y = _HEIGHT - _SIDE - up.place(run.gained) * (_HEIGHT - 2 * _SIDE)
        anchor, shift = ("end", -12) if x > _WIDTH / 2 else ("start", 12)
        color, name = _COLORS[number % len(_COLORS)], html.escape(run.name)
        marks.append(f'<circle cx="{x:.0f}" cy="{y:.0f}" r="7" fill="{color}"/>')
        marks.append(f'<text x="{x + shift:.0f}" y="{y + 5:.0f}" text-anchor="{anchor}" fill="{color}">{name}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="system-ui, sans-serif" '
        f'font-size="14" role="img" aria-label="gain against forgetting">{"".join(marks)}</svg>'
    )


class _Axis:
    """From 0, or the least value below it, to the largest."""

    def __init__(self, values: Sequence[float]) -> None:
        self.low, self.high = min([0.0, *values]), max([0.0, *values])
        if self.low == self.high:
            self.high = self.low + 1.0

    def place(self, value: float) -> float:
        """Between 0 and 1."""
        return (value - self.low) / (self.high - self.low)
