"""What was found in the data, in numbers: for the console, the run folder, TensorBoard."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from glm_lightning.data import judging
from glm_lightning.data.comparison import Shared
from glm_lightning.data.dataset import Dataset
from glm_lightning.data.gate import Gate
from glm_lightning.data.judging import Severity


@dataclass(frozen=True, slots=True)
class Count:
    """How many of a part's rows have a kind of fault, with the first of them as the example."""

    kind: str
    severity: Severity
    part: str
    count: int
    rows: int
    meaning: str
    example: str

    def __str__(self) -> str:
        return f"{self.part}: {self.count:,} of {self.rows:,} rows {self.meaning}; first {self.example}"


def counts(parts: Mapping[str, Dataset], shared: Sequence[Shared], *, gate: Gate) -> list[Count]:
    """One for every part and kind that was found and is told."""
    found = [*_of_rows(parts, gate), *_between_rows(parts, shared, gate)]
    return [count for count in found if count.severity != "off"]


def table(found: Iterable[Count]) -> str:
    """The counts as a Markdown table, for TensorBoard."""
    lines = ["| part | kind | severity | rows | of | example |", "| --- | --- | --- | ---: | ---: | --- |"]
    for each in found:
        example = each.example.replace("|", "\\|")
        lines.append(f"| {each.part} | {each.kind} | {each.severity} | {each.count} | {each.rows} | {example} |")
    return "\n".join(lines)


def _of_rows(parts: Mapping[str, Dataset], gate: Gate) -> Iterable[Count]:
    kinds = judging.kinds()
    for name, part in parts.items():
        by_kind: dict[str, dict[int, str]] = {}
        for finding in part.findings:
            by_kind.setdefault(finding.kind, {}).setdefault(finding.row, f"{part.files[finding.file]}{finding.text}")
        for kind, rows in by_kind.items():
            example = next(iter(rows.values()))
            yield Count(kind, gate.severity_of(kind), name, len(rows), part.num_rows, kinds[kind].meaning, example)


def _between_rows(parts: Mapping[str, Dataset], shared: Sequence[Shared], gate: Gate) -> Iterable[Count]:
    for each in shared:
        part = parts[each.part]
        mine, theirs = part.origin(int(each.pairs[0, 0])), parts[each.other].origin(int(each.pairs[0, 1]))
        meaning = each.kind.meaning.format(other=each.other)
        severity = gate.severity_of(each.kind.name)
        yield Count(
            each.kind.name, severity, each.part, len(each.pairs), part.num_rows, meaning, f"{mine} (see {theirs})"
        )
