"""CSV and TSV: a line of column names, then rows of as many fields."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from glm_lightning.data.judging.kinds import FILE, Fault
from glm_lightning.data.reading.base import Problems, Row, no_rows, short
from glm_lightning.data.reading.decoding import undecodable
from glm_lightning.data.reading.opening import Content

_LONGEST_FIELD = 1 << 26
"""Bytes; a quote that is never closed would take the rest of the file into one field."""


def rows(content: Content, path: Path, problems: Problems) -> Iterator[Row]:
    """The rows, each with the line it starts on; every value is text. They end at the first fault of a quote."""
    csv.field_size_limit(_LONGEST_FIELD)
    reader = csv.reader(_lines(content), delimiter=_delimiter(content), strict=True)
    columns: list[str] = []
    line, found = 1, False
    try:
        for fields in reader:
            start, line = line, reader.line_num + 1
            if not "".join(fields).strip() and len(fields) < 2:
                continue
            if not columns:
                columns = [name.strip() for name in fields]
                if problem := _wrong_names(columns):
                    problems.add(path, Fault(FILE, f"{path}:{start}: {problem}"))
                    return
                continue
            found = True
            if [name.strip("\ufeff ") for name in fields] == columns:
                what = "repeats the names of the columns: were files joined? remove the line"
                problems.add(path, Fault("syntax", f"{path}:{start}: {what}"))
            elif len(fields) != len(columns):
                problems.add(path, Fault("syntax", f"{path}:{start}: {_ragged(fields, columns)}"))
            else:
                # the line ends in a cell are those of its file, as everywhere else
                texts = [field.replace("\r\n", "\n") for field in fields]
                yield Row(dict(zip(columns, texts, strict=True)), start, content.done)
    except UnicodeDecodeError as error:
        problems.add(path, undecodable(path, reader.line_num + 1, error, kind=FILE))
        return
    except csv.Error as error:
        what = f"not CSV: {_reason(error)}; correct it: rows from here on are not read"
        problems.add(path, Fault(FILE, f"{path}:{line}: {what}"))
        return
    if not found:
        problems.add(path, no_rows(path, "give a line of column names, then one row a line"))


def _lines(content: Content) -> Iterator[str]:
    return (raw.decode("utf-8") for raw in content.stream)


def _delimiter(content: Content) -> str:
    """A tab for TSV; else the comma, unless the first line has none and has semicolons or tabs instead."""
    if content.suffix == ".tsv":
        return "\t"
    first = content.head.lstrip().partition(b"\n")[0]
    return next((sign for sign in ",;\t" if sign.encode() in first), ",")


def _wrong_names(columns: list[str]) -> str | None:
    if twice := next((name for name in columns if columns.count(name) > 1), None):
        return f"the column {twice!r} stands twice; give every column a name of its own"
    if columns.count("") > 1:
        return "several columns have no name; name them in the first line"
    return None


def _ragged(fields: list[str], columns: list[str]) -> str:
    return (
        f"{len(fields)} fields where the first line names {len(columns)} columns ({', '.join(columns)}): "
        f"{short(','.join(fields))}; put texts with commas or line ends in quotes"
    )


def _reason(error: csv.Error) -> str:
    if str(error) == "unexpected end of data":
        return "a quote that is opened here is never closed"
    if str(error).startswith("new-line character seen"):
        return "a carriage return that ends no line; save the file with usual line ends"
    return str(error)
