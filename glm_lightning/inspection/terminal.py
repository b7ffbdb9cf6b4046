"""The facts in the terminal."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.bar import Bar
from rich.console import Console
from rich.table import Table
from rich.text import Text

_BAR_WIDTH = 40


def show(facts: Mapping[str, Any], samples: Sequence[tuple[str, Text]], console: Console) -> None:
    """Print everything; ``samples`` are where rows stand, and the rows as the model sees them."""
    console.print(
        f"tokens and template of {facts['model']} ({facts['template']}); max_length {facts['max_length']:,}",
        highlight=False,
        markup=False,
    )
    console.print(_parts(facts["parts"]))
    train = facts["parts"]["train"]
    console.print(_histogram(train["histogram"], max_length=facts["max_length"]))
    plan, suggested = facts["plan"], facts["suggestion"]
    console.print(
        f"an epoch: {plan['steps_per_epoch']:,} steps of {plan['batch_size']} samples in "
        f"{plan['micro_batches_per_step']} micro-batch(es) of at most {plan['max_tokens']:,} positions; "
        f"{plan['padding_share']:.1%} padding",
        highlight=False,
    )
    console.print(f"suggested: max_length={suggested['max_length']}: {suggested['reason']}", highlight=False)
    console.print(_faults(facts["faults"]) if facts["faults"] else "no faults found", highlight=False)
    for notice in facts["notices"]:
        console.print(f"note: {notice}", highlight=False, markup=False)
    for place, text in samples:
        console.print(Text(f"\n{place}", style="dim"))
        console.print(text)


def _parts(parts: Mapping[str, Any]) -> Table:
    table = Table(title="data", title_justify="left")
    table.add_column("")
    for name in parts:
        table.add_column(name, justify="right")
    for label, cell in _LINES.items():
        table.add_row(label, *(cell(part) for part in parts.values()))
    return table


_LINES: dict[str, Callable[[Any], str]] = {
    "rows": lambda part: f"{part['rows']:,}",
    "bad rows": lambda part: f"{part['bad_rows']:,}",
    "samples": lambda part: f"{part['samples']:,}",
    "turns a sample": lambda part: f"{part['turns_per_sample']['mean']:g}, at most {part['turns_per_sample']['max']}",
    "languages": lambda part: ", ".join(
        f"{name} {part['languages'][name]:.0%}" for name in ("zh", "en", "other") if part["languages"][name]
    ),
    "tokens": lambda part: f"{part['tokens']:,}",
    "learned": lambda part: f"{part['learned_share']:.1%}",
    "length p50, p90, p99": lambda part: ", ".join(f"{part['lengths'][name]:,}" for name in ("p50", "p90", "p99")),
    "longest": lambda part: f"{part['lengths']['max']:,}",
    "shortened": lambda part: f"{part['truncated']['samples']:,} ({part['truncated']['share']:.1%})",
    "tokens cut": lambda part: f"{part['truncated']['tokens_cut']:,}",
    "answers cut": lambda part: f"{part['truncated']['answers_cut']:,}",
}


def _histogram(bins: Sequence[Mapping[str, int]], *, max_length: int) -> Table:
    table = Table(title="tokens of the training samples, before anything is cut", title_justify="left", box=None)
    for justify in ("right", "left", "right"):
        table.add_column("", justify=justify)
    most = max(each["samples"] for each in bins)
    filled = itertools.dropwhile(lambda each: not each["samples"], bins)
    for each in filled:
        color = "red" if each["from"] > max_length else "yellow" if each["to"] > max_length else "green"
        bar = Bar(most, 0, each["samples"], width=_BAR_WIDTH, color=color)
        table.add_row(f"{each['from']:,}-{each['to']:,}", bar, f"{each['samples']:,}")
    return table


def _faults(faults: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="faults", title_justify="left")
    for name in ("part", "kind", "severity"):
        table.add_column(name)
    table.add_column("rows", justify="right")
    table.add_column("example", overflow="fold")
    for each in faults:
        table.add_row(each["part"], each["kind"], each["severity"], f"{each['count']:,}", Text(each["example"]))
    return table
