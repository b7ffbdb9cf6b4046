"""What was found in the data, in numbers: for the console, the run folder, TensorBoard."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from glm_lightning.data import judging
from glm_lightning.data.comparison import Shared
from glm_lightning.data.dataset import Dataset
from glm_lightning.data.gate import Gate, num_bad
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
    """One for every part and kind that was found and is told, those whose rows were left out among them."""
    found = [*_of_rows(parts, gate), *_between_rows(parts, shared, gate), *_left_out(parts)]
    return [count for count in found if count.severity != "off"]


def _left_out(parts: Mapping[str, Dataset]) -> Iterable[Count]:
    kinds = judging.kinds()
    for name, part in parts.items():
        num_rows = part.num_rows + num_bad(part.refused)
        for kind in dict.fromkeys(each.kind for each in part.refused):
            every = [each for each in part.refused if each.kind == kind]
            meaning = f"{kinds[kind].meaning.format(other='another part')}, and are left out"
            example = f"{part.files[every[0].file]}{every[0].text}"
            yield Count(kind, "error", name, num_bad(every), num_rows, meaning, example)


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
        for count, first in part.faults():
            kind, example = kinds[first.kind], f"{part.files[first.file]}{first.text}"
            yield Count(kind.name, gate.severity_of(kind.name), name, count, part.num_rows, kind.meaning, example)


def _between_rows(parts: Mapping[str, Dataset], shared: Sequence[Shared], gate: Gate) -> Iterable[Count]:
    for each in shared:
        part = parts[each.part]
        mine, theirs = part.origin(int(each.pairs[0, 0])), parts[each.other].origin(int(each.pairs[0, 1]))
        meaning = each.kind.meaning.format(other=each.other)
        severity = gate.severity_of(each.kind.name)
        yield Count(
            each.kind.name, severity, each.part, len(each.pairs), part.num_rows, meaning, f"{mine} (see {theirs})"
        )
