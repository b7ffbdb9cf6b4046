"""Figures of several models as a table, as JSON, and what is to be said about them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from glm_lightning.evaluation.bootstrap import LEVEL, Score
from glm_lightning.evaluation.measuring import Result

_COUNTS = {
    "not ended": "end at their longest, not by themselves",
    "empty": "are empty",
    "shortened": "answer a prompt that was shortened to the context",
}


def show(results: Sequence[Result], notices: Sequence[str], console: Console) -> None:
    """Print a column for each model, and under it what is to be said."""
    table = Table()
    table.add_column("")
    for result in results:
        table.add_column(result.subject.name, justify="right", overflow="fold")
    for name in _names(results, "losses"):
        table.add_row(name, *(_figure(result.losses.get(name)) for result in results))
    for name in _names(results, "scores"):
        first = results[0].scores.get(name)
        table.add_row(name, *(_score(result.scores.get(name), first) for result in results))
    if any(result.answered for result in results):
        table.add_row("answers", *(f"{len(result.answered):,}" for result in results))
    console.print(table)
    for notice in [*_legend(results), *notices, *(each for result in results for each in _counted(result))]:
        console.print(f"- {notice}", highlight=False, markup=False, soft_wrap=True)
    for result in results:
        if result.predictions is not None:
            told = f"- answers of {result.subject.name}: {result.predictions}"
            console.print(told, highlight=False, markup=False, soft_wrap=True)


def plain(results: Sequence[Result], notices: Sequence[str]) -> dict[str, Any]:
    """The same as JSON has it; what is not a number is null."""
    return {"level": LEVEL, "models": [_plain(result, results[0]) for result in results], "notices": list(notices)}


def _plain(result: Result, first: Result) -> dict[str, Any]:
    scores = {
        name: {"value": _number(score.value), "interval": [_number(end) for end in score.interval]}
        | (
            {"difference": [_number(end) for end in score.difference(first.scores[name])]}
            if result is not first and _comparable(score, first.scores.get(name))
            else {}
        )
        for name, score in result.scores.items()
    }
    return {
        "name": result.subject.name,
        "model": result.subject.found.base.path,
        "adapter": None if result.subject.found.adapter is None else str(result.subject.found.adapter),
        "precision": result.arithmetic.precision,
        "losses": result.losses,
        "scores": scores,
        "counts": result.counts,
        "predictions": None if result.predictions is None else str(result.predictions),
    }


def _names(results: Sequence[Result], kind: str) -> list[str]:
    """The names of all models' figures, in the order in which they come."""
    return list(dict.fromkeys(name for result in results for name in getattr(result, kind)))


def _score(score: Score | None, first: Score | None) -> str:
    if score is None:
        return ""
    low, high = score.interval
    interval = "" if math.isnan(low) else f" [dim]({low:.4g} to {high:.4g})[/dim]"
    return _figure(score.value) + interval + _mark(score, first)


def _mark(score: Score, first: Score | None) -> str:
    """Whether a score differs from the first model's for more than the choice of rows."""
    if first is None or score is first or not _comparable(score, first):
        return "  "
    low, high = score.difference(first)
    return " ▲" if low > 0 else " ▼" if high < 0 else "  "


def _comparable(score: Score, first: Score | None) -> bool:
    """Whether both were drawn from the same rows."""
    return first is not None and len(score.each) == len(first.each) and len(score.drawn) > 0


def _legend(results: Sequence[Result]) -> Iterator[str]:
    if any(score.drawn.size for result in results for score in result.scores.values()):
        yield f"in brackets: {LEVEL:.0%} confidence, by drawing rows again" + (
            f"; ▲ ▼: higher or lower than {results[0].subject.name} with that confidence" if len(results) > 1 else ""
        )


def _counted(result: Result) -> Iterator[str]:
    counts = result.counts
    for name, what in _COUNTS.items():
        if counts[name]:
            yield f"{result.subject.name}: {counts[name]:,} of {counts['rows']:,} answers {what}"
    if result.known:
        yield f"{result.subject.name}: {result.known:,} answers were there from an earlier call (--fresh asks again)"


def _figure(value: float | None) -> str:
    return "" if value is None else "-" if math.isnan(value) else f"{value:.4g}"


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
