"""Plain text: one document a row, to be learned as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, final

from glm_lightning.data.formats import fields
from glm_lightning.data.formats.base import RowKind, raise_any
from glm_lightning.data.reading.plain_text import Unit
from glm_lightning.types import Document, Origin


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Text(RowKind[Document]):
    """Rows with a text.

    Args:
        text: column of the text.
        documents: what one document of a plain text file is: each line, each paragraph (blank lines between them), or
            the whole file.
    """

    holds = Document
    yields = True

    text: str = "text"
    documents: Unit = "line"

    @classmethod
    def dialects(cls) -> tuple[Self, ...]:
        """The usual column, and ms-swift's."""
        return cls(), cls(text="response")

    def fits(self, row: Mapping[str, Any]) -> bool:
        """There is a text."""
        return isinstance(row.get(self.text), str)

    def parse(self, row: Mapping[str, Any], origin: Origin) -> Document:
        """The document in a row; see `RowKind.parse`."""
        faults: list[str] = []
        text = fields.text(row, self.text, faults)
        raise_any(faults, origin)
        return Document(text, origin)
