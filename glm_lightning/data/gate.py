"""The gate: rows that are bad stop the run, or are set aside as long as they are few."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final

from glm_lightning.data import judging
from glm_lightning.data.findings import Finding
from glm_lightning.data.judging.kinds import Severity, severities
from glm_lightning.data.reading import Problems
from glm_lightning.types import UserError

OnBadRow = Literal["error", "quarantine"]


@final
@dataclass(frozen=True, kw_only=True)
class Gate:
    """What happens to rows with faults.

    Args:
        on_bad_row: ``error`` reports all and stops; ``quarantine`` goes on without them.
        max_bad_share: largest share of bad rows to go on with.
        severity: other severities than the kinds' own, by kind.
    """

    on_bad_row: OnBadRow = "error"
    max_bad_share: float = 0.01
    severity: Mapping[str, Severity] | None = None

    def check(self) -> list[str]:
        """What is wrong with the settings."""
        problems = []
        if self.on_bad_row not in ("error", "quarantine"):
            problems.append(f"data.on_bad_row is {self.on_bad_row!r}: must be error or quarantine")
        if not 0 <= self.max_bad_share <= 1:
            problems.append(f"data.max_bad_share is {self.max_bad_share}: must be a share from 0 to 1")
        try:
            severities(judging.kinds(), self.severity)
        except UserError as error:
            problems += error.problems
        return problems

    def severity_of(self, kind: str) -> Severity:
        """How grave a kind of fault is."""
        return severities(judging.kinds(), self.severity)[kind]

    @property
    def errors(self) -> set[str]:
        """The kinds of fault whose rows are left out, or stop the run."""
        return {kind for kind, severity in severities(judging.kinds(), self.severity).items() if severity == "error"}

    def admit(self, findings: Sequence[Finding], *, files: Sequence[Path], num_rows: int) -> list[Finding]:
        """The findings whose rows are to be left out.

        Raises:
            UserError: there are such rows and they are to stop the run, or they are too many.
        """
        grave = self.errors
        errors = [finding for finding in findings if finding.kind in grave]
        if not errors:
            return []
        too_many = num_bad(errors) > self.max_bad_share * num_rows or num_bad(errors) == num_rows
        if self.on_bad_row == "error" or too_many:
            raise UserError([*_shown(errors, files), self._in_all(errors, files, num_rows)])
        return errors

    def _in_all(self, errors: Sequence[Finding], files: Sequence[Path], num_rows: int) -> str:
        """How many rows are bad, and what can be done."""
        bad = num_bad(errors)
        advice = "; correct them, or go on without: data.on_bad_row=quarantine"
        if bad == num_rows:
            advice = ", so none is left; correct them, or name how they are to be read: data.format"
        elif bad > self.max_bad_share * num_rows:
            enough = math.ceil(100 * bad / num_rows) / 100
            advice = (
                f", more than data.max_bad_share={self.max_bad_share:g} of them{advice} data.max_bad_share={enough:g}"
            )
        names = ", ".join(sorted({str(files[finding.file]) for finding in errors}))
        return f"{names}: {bad:,} of {num_rows:,} rows are bad ({_by_kind(errors)}){advice}"


def num_bad(errors: Iterable[Finding]) -> int:
    """How many rows have faults, be they one or several."""
    return len({(finding.file, finding.line, finding.row) for finding in errors})


def in_words(errors: Sequence[Finding]) -> str:
    """How many rows are bad, and of which kinds their faults are."""
    rows = num_bad(errors)
    return f"{rows:,} bad row{'s' if rows > 1 else ''} ({_by_kind(errors)})"


def _by_kind(errors: Sequence[Finding]) -> str:
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in Counter(each.kind for each in errors).most_common())
    return f"{len(errors):,} faults: {kinds}" if len(errors) > num_bad(errors) else kinds


def _shown(errors: Sequence[Finding], files: Sequence[Path]) -> list[str]:
    """The first of each file, and how many more there are."""
    problems = Problems()
    for finding in errors:
        problems.add(files[finding.file], f"{files[finding.file]}{finding.text}")
    return problems.texts
