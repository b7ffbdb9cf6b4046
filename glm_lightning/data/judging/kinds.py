"""The kinds of fault that data can have, and how grave each is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self, final, get_args

from glm_lightning.types import UserError

Severity = Literal["error", "notice", "off"]
"""An error stops the run or sends the row into quarantine; a notice is counted and told; off is not told."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of fault.

    Args:
        name: as it stands in reports and under ``data.severity``.
        severity: unless yaml says otherwise.
        meaning: what rows of this kind have, behind a number of rows.
    """

    name: str
    severity: Severity
    meaning: str


FILE = "file"
"""A fault of a whole file: what stands behind it is lost, so it cannot be set aside like a row."""

OF_ROWS = (
    Kind(FILE, "error", "cannot be read to the end of their file"),
    Kind("syntax", "error", "are not what the file's format asks for"),
    Kind("encoding", "error", "are not in the text encoding of the file"),
    Kind("duplicate_key", "error", "have a key twice in one object"),
    Kind("missing", "error", "lack a field"),
    Kind("type", "error", "have a field of the wrong type"),
    Kind("empty", "error", "have an empty field"),
    Kind("role", "error", "have a turn of an unknown role"),
    Kind("order", "error", "have turns in an order that no conversation has"),
    Kind("tool_json", "error", "have tools or tool calls that are not what they should be"),
    Kind("trailing_turn", "error", "have turns behind the last answer"),
    Kind("surrogate", "error", "hold half of a surrogate pair"),
    Kind("format", "error", "do not fit their format"),
    Kind("template", "error", "cannot be rendered by the chat template"),
    Kind("nothing_learned", "error", "have nothing to learn"),
    Kind("over_long", "error", "leave no room for an answer"),
)
"""What readers, formats and the encoder refuse. The files of this folder add what they judge."""


@final
class Fault(str):
    """What is wrong with a row, in a sentence that names field, value and rule, with the name of its kind."""

    kind: str

    def __new__(cls, kind: str, text: str) -> Self:
        """A fault of that kind."""
        fault = super().__new__(cls, text)
        fault.kind = kind
        return fault

    def __reduce__(self) -> tuple[type[Fault], tuple[str, str]]:
        return Fault, (self.kind, str(self))

    def at(self, place: object) -> Fault:
        """The same fault with its place in front."""
        return Fault(self.kind, f"{place}: {self}")


def kind_of(text: str, *, default: str) -> str:
    """The kind of a fault; ``default`` for a plain text."""
    return text.kind if isinstance(text, Fault) else default


def severities(kinds: Mapping[str, Kind], chosen: Mapping[str, Severity] | None) -> dict[str, Severity]:
    """The severity of every kind, by name.

    Raises:
        UserError: ``chosen`` names a kind or a severity that there is not, or makes light of rows that cannot be read.
    """
    problems = []
    for name, severity in (chosen or {}).items():
        if name not in kinds:
            problems.append(f"data.severity.{name}: there is no such kind; there are {', '.join(sorted(kinds))}")
        elif severity not in get_args(Severity):
            problems.append(f"data.severity.{name} is {severity!r}: must be one of {', '.join(get_args(Severity))}")
        elif severity != "error" and any(kind.name == name for kind in OF_ROWS):
            problems.append(
                f"data.severity.{name} is {severity}: such rows cannot be trained on, so this stays an error; "
                "set them aside with data.on_bad_row=quarantine"
            )
    if problems:
        raise UserError(problems)
    return {name: kind.severity for name, kind in kinds.items()} | dict(chosen or {})
