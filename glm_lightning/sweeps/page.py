"""The table of a sweep as one HTML page that needs nothing else: parallel coordinates, importance, all scores."""

from __future__ import annotations

import html
import math
import statistics
from collections.abc import Sequence

from glm_lightning.sweeps.jobs import RANKED_BY, Job

_STYLE = """
body { font: 15px/1.5 system-ui, "Noto Sans CJK SC", sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem;
  color: #222; background: #fff }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; display: block; overflow-x: auto }
td, th { padding: .2rem .8rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top }
td.number { text-align: right } tr.best { background: #e8f5ec } .quiet { color: #777 }
svg { width: 100%; height: auto } svg text { font-size: 12px; fill: #444 } path { fill: none; stroke-width: 1.5 }
path:hover { stroke-width: 4 } .bar { fill: #2e8b57 }
"""
_WIDTH, _HEIGHT, _TOP, _FOOT, _SIDE, _LINE = 960, 330, 34, 20, 90, 14


def page(jobs: Sequence[Job], metrics: Sequence[str]) -> str:
    """The page; ``jobs`` are ranked, ``metrics`` the names of all scores."""
    done = [job for job in jobs if not math.isnan(job.score)]
    body = ["<h1>Sweep</h1>", f"<p>{_summary(jobs)}</p>"]
    if len(done) > 1:
        body += [f"<h2>What leads to {RANKED_BY}</h2>", _coordinates(done), _importances(done)]
    body.append(f"<h2>All jobs, best first</h2>{_table(jobs, metrics)}")
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8">\n<title>Sweep</title>\n<style>{_STYLE}</style>\n'
        + "\n".join(body)
    )


def importances(jobs: Sequence[Job]) -> dict[str, float]:
    """How much of the spread of the score each swept key explains alone, between 0 and 1, the largest first.

    Where a key's values recur it is eta squared, the share of the variance that lies between the values' means; where
    hardly any does (a range that was drawn from), the square of Spearman's rank correlation.
    """
    scores = [job.score for job in jobs]
    columns = {key: [_values(job).get(key, "") for job in jobs] for key in _keys(jobs)}
    found = {
        key: _eta_squared(column, scores) if 2 * len(set(column)) <= len(column) else _rank_correlation(column, scores)
        for key, column in columns.items()
    }
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def _eta_squared(groups: Sequence[str], scores: Sequence[float]) -> float:
    whole = statistics.pvariance(scores)
    mean = statistics.fmean(scores)
    members = {group: [s for g, s in zip(groups, scores, strict=True) if g == group] for group in set(groups)}
    between = sum(len(own) * (statistics.fmean(own) - mean) ** 2 for own in members.values()) / len(scores)
    return between / whole if whole else 0.0


def _rank_correlation(column: Sequence[str], scores: Sequence[float]) -> float:
    if len(set(column)) < 2 or len(set(scores)) < 2:
        return 0.0
    numbers = [_number(text, column) for text in column]
    return statistics.correlation(_ranks(numbers), _ranks(scores)) ** 2


def _ranks(numbers: Sequence[float]) -> list[float]:
    """The place of each in their order; equal ones share the mean of theirs."""
    order = sorted(numbers)
    return [order.index(number) + (order.count(number) - 1) / 2 for number in numbers]


def _number(text: str, column: Sequence[str]) -> float:
    """The value itself, or its place among the values where they are names."""
    try:
        return float(text)
    except ValueError:
        return float(sorted(set(column)).index(text))


def _keys(jobs: Sequence[Job]) -> list[str]:
    """The keys whose values differ between jobs."""
    keys = dict.fromkeys(key for job in jobs for key in _values(job))
    return [key for key in keys if len({_values(job).get(key) for job in jobs}) > 1]


def _values(job: Job) -> dict[str, str]:
    return {key: value for key, _, value in (override.partition("=") for override in job.overrides)}


def _summary(jobs: Sequence[Job]) -> str:
    counts = {status: sum(job.status == status for job in jobs) for status in dict.fromkeys(j.status for j in jobs)}
    return ", ".join(f"{count} {status}" for status, count in counts.items())


def _coordinates(jobs: Sequence[Job]) -> str:
    """One line a job through an axis for each key, the score's axis last; green is good."""
    keys = [*_keys(jobs), RANKED_BY]
    columns = [[_values(job).get(key, "") for job in jobs] for key in keys[:-1]] + [
        [f"{job.score:.4g}" for job in jobs]
    ]
    places = [_places(column) for column in columns]
    across = [_SIDE + index * (_WIDTH - 2 * _SIDE) / max(1, len(keys) - 1) for index in range(len(keys))]
    marks = []
    for row in reversed(range(len(jobs))):
        points = " L ".join(f"{x:.1f} {_y(place[row]):.1f}" for x, place in zip(across, places, strict=True))
        hue = round(140 * (1 - row / max(1, len(jobs) - 1)))
        label = html.escape(f"{jobs[row].number}: {' '.join(jobs[row].overrides)}: {jobs[row].score:.4g}")
        marks.append(f'<path d="M {points}" stroke="hsl({hue} 60% 42%)"><title>{label}</title></path>')
    for x, key, column, place in zip(across, keys, columns, places, strict=True):
        marks.append(f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{_HEIGHT - _FOOT}" stroke="#999"/>')
        marks.append(f'<text x="{x:.1f}" y="18" text-anchor="middle" font-weight="600">{html.escape(key)}</text>')
        for text, height in _ticks(column, place):
            marks.append(f'<text x="{x + 5:.1f}" y="{_y(height) + 4:.1f}">{html.escape(text)}</text>')
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="parallel coordinates">{"".join(marks)}</svg>'


def _places(column: Sequence[str]) -> list[float]:
    """Where each value stands on its axis, between 0 and 1; positive numbers over two decades on a logarithmic one."""
    numbers = [_number(text, column) for text in column]
    if min(numbers) > 0 and max(numbers) / min(numbers) >= 100:
        numbers = [math.log(number) for number in numbers]
    low, high = min(numbers), max(numbers)
    return [(number - low) / (high - low) if high > low else 0.5 for number in numbers]


def _ticks(column: Sequence[str], places: Sequence[float]) -> list[tuple[str, float]]:
    """The texts beside an axis, those left out that would stand on another."""
    shown: list[tuple[str, float]] = []
    for text, place in sorted(dict(zip(column, places, strict=True)).items(), key=lambda pair: pair[1]):
        if not shown or place - shown[-1][1] >= _LINE / (_HEIGHT - _FOOT - _TOP):
            shown.append((text, place))
    return shown


def _y(place: float) -> float:
    return _HEIGHT - _FOOT - place * (_HEIGHT - _FOOT - _TOP)


def _importances(jobs: Sequence[Job]) -> str:
    rows = "".join(
        f'<tr><td>{html.escape(key)}</td><td><svg viewBox="0 0 200 14" style="width: 200px">'
        f'<rect class="bar" width="{200 * share:.1f}" height="14"/></svg></td><td class="number">{share:.0%}</td></tr>'
        for key, share in importances(jobs).items()
    )
    return f'<p class="quiet">Share of the spread of {RANKED_BY} that each key explains alone:</p><table>{rows}</table>'


def _table(jobs: Sequence[Job], metrics: Sequence[str]) -> str:
    keys = list(dict.fromkeys(key for job in jobs for key in _values(job)))
    head = "".join(f"<th>{html.escape(name)}" for name in ("", "job", *keys, *metrics, "seconds", "outcome", "run"))
    rows = []
    for rank, job in enumerate(jobs, start=1):
        best = ' class="best"' if rank == 1 and job.status == "done" else ""
        numbers = [f"{job.metrics[name]:.5g}" if name in job.metrics else "" for name in metrics]
        cells = [
            str(rank) if job.status == "done" else "",
            str(job.number),
            *(_values(job).get(key, "") for key in keys),
        ]
        outcome = f"{job.status}: {job.reason}" if job.reason else job.status
        rows.append(
            f"<tr{best}>"
            + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
            + "".join(f'<td class="number">{number}</td>' for number in [*numbers, f"{job.seconds:.0f}"])
            + f"<td>{html.escape(outcome)}</td><td>{html.escape(job.path)}</td></tr>"
        )
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"
