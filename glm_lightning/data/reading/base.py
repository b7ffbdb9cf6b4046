"""What every reader gives: rows with their place, and problems with theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from glm_lightning.data.judging.kinds import FILE, Fault

_SHOWN = 60


class Row(NamedTuple):
    """One object of a file, where it starts (1-based), and how much of the file is read (0 to 1).

    ``line`` is the line in a text file, and the number of the row in a columnar one.
    """

    value: dict[str, Any]
    line: int
    done: float


class RowError(ValueError):
    """Well-formed, and refused all the same: a fault of that kind, see `judging`."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class Problems:
    """Collects what is wrong, in order; keeps the first ``limit`` texts of each file and counts the rest."""

    def __init__(self, *, limit: int = 20) -> None:
        self._limit = limit
        self._texts: dict[Path, list[str]] = {}
        self._hidden: dict[Path, int] = {}

    def add(self, path: Path, *texts: str) -> None:
        """Note what is wrong with one row of ``path``."""
        kept = self._texts.setdefault(path, [])
        for text in texts:
            if len(kept) < self._limit:
                kept.append(text)
            else:
                self._hidden[path] = self._hidden.get(path, 0) + 1

    def __bool__(self) -> bool:
        return bool(self._texts)

    def take(self) -> list[str]:
        """The texts so far, which are then forgotten."""
        if not self._texts:
            return []
        texts = self.texts
        self._texts, self._hidden = {}, {}
        return texts

    @property
    def texts(self) -> list[str]:
        """All kept texts, and how many more each file has."""
        out: list[str] = []
        for path, texts in self._texts.items():
            out += texts
            if path in self._hidden:
                out.append(f"{path}: {self._hidden[path]:,} more problems like these")
        return out


def short(text: str) -> str:
    """The beginning of a text, in quotes."""
    text = text.strip(" \t\r\n")
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")


def no_rows(path: Path, advice: str) -> Fault:
    """What is said of a file without rows."""
    return Fault(FILE, f"{path}: no rows in the file; {advice}")
