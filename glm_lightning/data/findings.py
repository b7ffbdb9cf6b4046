"""What was found to be wrong with rows, on disk: looked at by kind and row, and read only where it is told."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from glm_lightning.data.columns import column, numbers

SCHEMA = pa.schema(
    [
        ("kind", pa.string()),
        ("file", pa.int32()),
        ("line", pa.int32()),
        ("row", pa.int32()),
        ("said", pa.string()),  # text and value as JSON
    ]
)


class Finding(NamedTuple):
    """A fault of a row, without the path of its file, for equal bytes elsewhere have equal faults."""

    kind: str
    file: int  # number of the file among the sources
    line: int  # 1-based, 0 for the whole file
    row: int  # number of the row among all sources, -1 for a line that is no row
    text: str  # what stands behind the path: ":12: output is null; ..."
    value: Any = None  # the row, of kinds that are errors by themselves: notices may concern every row of a large set


def batch(findings: Sequence[Finding]) -> Any:
    """Findings as a record batch of `SCHEMA`; what JSON has no word for in a row (a date, bytes) becomes text."""
    rows = [(*each[:4], json.dumps(each[4:], default=str)) for each in findings]
    columns: list[Any] = [list(each) for each in zip(*rows, strict=True)]
    return pa.record_batch(columns or [[] for _ in SCHEMA], schema=SCHEMA)


@final
class Findings:
    """The findings of a file, in their order; there may be millions."""

    def __init__(self, path: Path) -> None:
        self._table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        kinds = self._table.column("kind").combine_chunks().dictionary_encode()
        self._kinds: list[str] = kinds.dictionary.to_pylist()
        self._codes = numbers(kinds.indices)
        self._rows: npt.NDArray[np.int32] = numbers(self._table.column("row"))

    def of(self, kinds: Iterable[str]) -> list[Finding]:
        """Those of some kinds."""
        wanted = [code for code, kind in enumerate(self._kinds) if kind in kinds]
        return self._read(np.flatnonzero(np.isin(self._codes, wanted)))

    def by_kind(self, rows: npt.NDArray[np.bool_]) -> list[tuple[int, Finding]]:
        """How many rows have a kind of fault, and the first of them, for each kind that there is.

        Args:
            rows: whether a row is looked at, by its number.
        """
        chosen = (self._rows >= 0) & (self._rows < len(rows))
        chosen[chosen] = rows[self._rows[chosen]]
        found: list[tuple[int, Finding]] = []
        for code in range(len(self._kinds)):  # in the order in which they are met first
            which = np.flatnonzero(chosen & (self._codes == code))
            if len(which):
                found.append((len(np.unique(self._rows[which])), self._read(which[:1])[0]))
        return found

    def _read(self, indices: npt.NDArray[np.intp]) -> list[Finding]:
        columns = self._table.take(column(indices)).to_pydict().values()
        return [Finding(*each, *json.loads(said)) for *each, said in zip(*columns, strict=True)]
