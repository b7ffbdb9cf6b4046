"""Parquet and Arrow: rows by the batch."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from glm_lightning.data.judging.kinds import FILE, Fault
from glm_lightning.data.reading.base import Problems, Row, no_rows
from glm_lightning.data.reading.opening import Content

_BATCH = 1024
_END = b"\xff\xff\xff\xff\0\0\0\0"
"""What ends a stream (Arrow's columnar format, "IPC streaming format")."""

_FAULTS = (pa.ArrowException, OSError, ValueError, OverflowError, NotImplementedError, MemoryError)
"""What pyarrow raises for files that are not as they should be."""


def rows(content: Content, path: Path, problems: Problems) -> Iterator[Row]:
    """The rows, numbered from 1. Null fields of nested objects are left out, for columns cannot tell them from
    missing ones.
    """
    number = 0
    with tempfile.TemporaryFile() as scratch:
        try:
            stream = content.stream if content.stream.seekable() else _on_disk(content.stream, scratch)
            for batch in _batches(stream, content):
                for value in _values(batch):
                    number += 1
                    yield Row(value, number, content.done)
        except _FAULTS as error:
            kind = content.kind.capitalize()
            what = f"not {kind} behind row {number:,}: {_first_line(error)}; write it again"
            problems.add(path, Fault(FILE, f"{path}: {what}"))
            return
    if not number:
        problems.add(path, no_rows(path, "give at least one row"))


def _on_disk(stream: Any, scratch: Any) -> Any:
    """The unpacked file, for these formats are read from their end."""
    shutil.copyfileobj(stream, scratch)
    scratch.seek(0)
    return scratch


def _batches(stream: Any, content: Content) -> Iterator[Any]:
    if not content.head:
        return
    if content.kind == "parquet":
        file = pq.ParquetFile(stream, pre_buffer=False)
        _check_names(file.schema_arrow)
        yield from file.iter_batches(batch_size=_BATCH)
    elif content.head.startswith(b"ARROW1"):
        reader = pa.ipc.open_file(stream)
        _check_names(reader.schema)
        yield from _sliced(map(reader.get_batch, range(reader.num_record_batches)))
    else:
        _check_end(stream)
        reader = pa.ipc.open_stream(stream)
        _check_names(reader.schema)
        yield from _sliced(reader)


def _sliced(batches: Iterator[Any]) -> Iterator[Any]:
    for batch in batches:
        batch.validate(full=True)
        for start in range(0, batch.num_rows, _BATCH):
            yield batch.slice(start, _BATCH)


def _check_end(stream: Any) -> None:
    """A stream that is cut off between two batches reads like a whole one, but for the mark at its end."""
    stream.seek(-len(_END), os.SEEK_END)
    end = stream.read()
    stream.seek(0)
    if end != _END:
        raise ValueError("the mark at its end is missing: is it cut off?")


def _check_names(schema: Any) -> None:
    if twice := next((name for name in schema.names if schema.names.count(name) > 1), None):
        raise ValueError(f"the column {twice!r} stands twice")


def _values(batch: Any) -> list[dict[str, Any]]:
    values: list[dict[str, Any]] = batch.to_pylist()
    for name, clean in ((field.name, _without_nulls) for field in batch.schema if _holds_objects(field.type)):
        _apply(values, name, clean)
    return values


def _apply(values: list[dict[str, Any]], name: str, function: Callable[[Any], Any]) -> None:
    for value in values:
        value[name] = function(value[name])


def _holds_objects(kind: Any) -> bool:
    return pa.types.is_struct(kind) or (pa.types.is_nested(kind) and any(
        _holds_objects(kind.field(i).type) for i in range(kind.num_fields)
    ))  # fmt: skip


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(child) for key, child in value.items() if child is not None}
    if isinstance(value, list):
        return [_without_nulls(child) for child in value]
    return value


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
