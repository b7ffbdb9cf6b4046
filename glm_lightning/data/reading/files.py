"""The rows of a file, whatever it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from glm_lightning.data.judging.kinds import FILE, Fault
from glm_lightning.data.reading import columnar, json_array, json_lines, plain_text, tables
from glm_lightning.data.reading.base import Problems, Row
from glm_lightning.data.reading.opening import Content, NoDataError, opened


def read(
    path: Path, problems: Problems, *, encoding: str | None = None, documents: plain_text.Unit = "line"
) -> Iterator[Row]:
    """The rows of a file of JSON, JSON lines, CSV, Parquet, Arrow or plain text, packed with gzip or zstd or not.

    What is wrong goes to ``problems``; rows go on after it where the file's kind lets them.

    Args:
        path: the file.
        problems: takes what is wrong.
        encoding: of a text without a byte order mark; None is UTF-8.
        documents: what one row of a plain text is.
    """
    try:
        with opened(path, encoding=encoding) as content:
            yield from _rows(content, path, problems, documents)
    except NoDataError as error:
        problems.add(path, Fault(FILE, f"{path}: {error}"))
    except OSError as error:
        problems.add(path, Fault(FILE, f"{path}: cannot be read: {error.strerror or error}"))


def _rows(content: Content, path: Path, problems: Problems, documents: plain_text.Unit) -> Iterator[Row]:
    if content.kind == "json":
        array = _first_character(content) == b"["
        yield from (json_array if array else json_lines).rows(content, path, problems)
    elif content.kind == "table":
        yield from tables.rows(content, path, problems)
    elif content.kind == "text":
        yield from plain_text.rows(content, path, problems, documents)
    else:
        yield from columnar.rows(content, path, problems)


def _first_character(content: Content) -> bytes:
    return content.head.strip(b" \t\r\n")[:1]
