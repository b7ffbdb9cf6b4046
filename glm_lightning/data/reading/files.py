"""The rows of a file, whatever it is."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from glm_lightning.data.judging.kinds import FILE, Fault
from glm_lightning.data.reading import columnar, json_array, json_lines, plain_text, tables
from glm_lightning.data.reading.base import Problems, Row
from glm_lightning.data.reading.opening import Content, NoDataError, opened


def read(
    path: Path,
    problems: Problems,
    *,
    encoding: str | None = None,
    documents: plain_text.Unit = "line",
    lines: Collection[int] | None = None,
) -> Iterator[Row]:
    """The rows of a file of JSON, JSON lines, CSV, Parquet, Arrow or plain text, packed with gzip or zstd or not.

    What is wrong goes to ``problems``; rows go on after it where the file's kind lets them.

    Args:
        path: the file.
        problems: takes what is wrong.
        encoding: of a text without a byte order mark; None is UTF-8.
        documents: what one row of a plain text is.
        lines: the lines whose rows are wanted; None: all.
    """
    try:
        with opened(path, encoding=encoding) as content:
            rows = _rows(content, path, problems, documents, lines)
            yield from rows if lines is None else (row for row in rows if row.line in lines)
    except NoDataError as error:
        problems.add(path, Fault(FILE, f"{path}: {error}"))
    except OSError as error:
        problems.add(path, Fault(FILE, f"{path}: cannot be read: {error.strerror or error}"))


def _rows(
    content: Content, path: Path, problems: Problems, documents: plain_text.Unit, lines: Collection[int] | None
) -> Iterator[Row]:
    if content.kind == "json" and _first_character(content) == b"[":
        yield from json_array.rows(content, path, problems)
    elif content.kind == "json":
        yield from json_lines.rows(content, path, problems, lines)
    elif content.kind == "table":
        yield from tables.rows(content, path, problems)
    elif content.kind == "text":
        yield from plain_text.rows(content, path, problems, documents)
    else:
        yield from columnar.rows(content, path, problems)


def _first_character(content: Content) -> bytes:
    return content.head.strip(b" \t\r\n")[:1]
