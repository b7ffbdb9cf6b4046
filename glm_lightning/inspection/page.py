"""The facts as one HTML page that needs nothing else."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text

_STYLE = """
body { font: 15px/1.5 system-ui, "Noto Sans CJK SC", sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse } td, th { padding: .2rem .8rem; border-bottom: 1px solid #ccc; text-align: left }
td.number { text-align: right } pre { white-space: pre-wrap; background: #f6f6f6; padding: 1rem }
.learned { color: #0a7d33; font-weight: 600 } .control { background: #ddd }
"""
_WIDTH, _HEIGHT, _FOOT = 880, 260, 40


def page(facts: Mapping[str, Any], samples: Sequence[tuple[str, Text]]) -> str:
    """The page; ``samples`` as in `terminal.show`."""
    suggested = facts["suggestion"]
    body = [
        "<h1>glm inspect</h1>",
        f"<p>Tokens and template of <b>{_(facts['model'])}</b> ({_(facts['template'])}), "
        f"max_length {facts['max_length']:,}.</p>",
        f"<p>Suggested: <b>max_length={suggested['max_length']}</b>: {_(suggested['reason'])}.</p>",
        "<h2>Tokens of the training samples, before anything is cut</h2>",
        _svg(facts["parts"]["train"]["histogram"], max_length=facts["max_length"]),
        *(f"<h2>{_(name)}</h2>{_values(part)}" for name, part in facts["parts"].items()),
        f"<h2>An epoch</h2>{_values(facts['plan'])}",
        *(f"<p>{_(notice)}</p>" for notice in facts["notices"]),
        f"<h2>Faults</h2>{_faults(facts['faults'])}",
        "<h2>Samples</h2>",
        *(f"<p>{_(place)}</p><pre>{_painted(text)}</pre>" for place, text in samples),
    ]
    return (
        f'<!doctype html>\n<meta charset="utf-8">\n<title>glm inspect</title>\n<style>{_STYLE}</style>\n'
        + "\n".join(body)
    )


def _(value: object) -> str:
    return html.escape(str(value))


def _svg(bins: Sequence[Mapping[str, int]], *, max_length: int) -> str:
    most, width = max(each["samples"] for each in bins), _WIDTH / len(bins)
    marks = []
    for i, each in enumerate(bins):
        height = (_HEIGHT - _FOOT) * each["samples"] / most
        color = "#c0392b" if each["from"] > max_length else "#d4a017" if each["to"] > max_length else "#2e8b57"
        label = f"{each['from']:,}-{each['to']:,}: {each['samples']:,}"
        marks.append(
            f'<rect x="{i * width:.1f}" y="{_HEIGHT - _FOOT - height:.1f}" width="{width - 2:.1f}" '
            f'height="{height:.1f}" fill="{color}"><title>{label}</title></rect>'
        )
        if i % 4 == 0 or i == len(bins) - 1:
            marks.append(f'<text x="{i * width:.1f}" y="{_HEIGHT - 20}" font-size="12">{each["from"]:,}</text>')
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="histogram of lengths">{"".join(marks)}</svg>'


def _values(values: Mapping[str, Any]) -> str:
    rows = "".join(f'<tr><td>{_(name)}</td><td class="number">{_(value)}</td></tr>' for name, value in _flat(values))
    return f"<table>{rows}</table>"


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for name, value in values.items():
        label = f"{prefix}{name.replace('_', ' ')}"
        if isinstance(value, Mapping):
            pairs += _flat(value, f"{label}: ")
        elif name == "files":
            pairs.append((label, ", ".join(value)))
        elif name != "histogram":
            pairs.append((label, f"{value:,}"))
    return pairs


def _faults(faults: Sequence[Mapping[str, Any]]) -> str:
    if not faults:
        return "<p>none found</p>"
    rows = "".join(
        f"<tr><td>{_(each['part'])}</td><td>{_(each['kind'])}</td><td>{_(each['severity'])}</td>"
        f'<td class="number">{each["count"]:,}</td><td>{_(each["example"])}</td></tr>'
        for each in faults
    )
    return f"<table><tr><th>part<th>kind<th>severity<th>rows<th>example</tr>{rows}</table>"


def _painted(text: Text) -> str:
    """Learned stretches and control tokens by class; the styles are those of `inference.show`."""
    out, position = [], 0
    for span in text.spans:
        style = str(span.style)
        names = " ".join(["learned"] * ("green" in style) + ["control"] * ("reverse" in style))
        out += [
            _(text.plain[position : span.start]),
            f'<span class="{names}">{_(text.plain[span.start : span.end])}</span>',
        ]
        position = span.end
    return "".join([*out, _(text.plain[position:])])
