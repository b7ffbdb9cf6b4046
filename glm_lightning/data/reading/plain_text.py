"""Plain text: documents to learn from as they are, each a row with the key ``text``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from glm_lightning.data.judging.kinds import FILE
from glm_lightning.data.reading.base import Problems, Row, no_rows
from glm_lightning.data.reading.decoding import undecodable
from glm_lightning.data.reading.opening import Content

Unit = Literal["line", "paragraph", "file"]


def rows(content: Content, path: Path, problems: Problems, unit: Unit) -> Iterator[Row]:
    """The documents: lines, paragraphs (with blank lines between them), or the file as one; blank ones are none."""
    document: list[str] = []
    start, found = 1, False
    for number, raw in enumerate(content.stream, start=1):
        try:
            line = raw.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            problems.add(path, undecodable(path, number, error, kind=FILE))
            return
        if line.strip() or unit == "file":
            start = start if document else number
            document.append(line)
        if document and (unit == "line" or (unit == "paragraph" and not line.strip())):
            found = True
            yield Row({"text": "\n".join(document)}, start, content.done)
            document = []
    if "".join(document).strip():
        yield Row({"text": "\n".join(document)}, start, content.done)
    elif not found:
        problems.add(path, no_rows(path, "give text"))
