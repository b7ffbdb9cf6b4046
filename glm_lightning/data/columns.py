"""Columns of Arrow as arrays of numpy, and back. Arrow's own ways import pandas, if there is one: half a second."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa


def numbers(column: Any) -> npt.NDArray[Any]:
    """A column of numbers without nulls, chunked or not. Shape (rows,)."""
    if isinstance(column, pa.ChunkedArray):
        parts = [np.from_dlpack(chunk) for chunk in column.chunks]
        return np.concatenate([*parts, np.empty(0, column.type.to_pandas_dtype())])
    return np.from_dlpack(column)


def truths(column: Any) -> npt.NDArray[np.bool_]:
    """A column of truth values without nulls. Shape (rows,)."""
    if isinstance(column, pa.ChunkedArray):
        return np.concatenate([*map(truths, column.chunks), np.empty(0, np.bool_)])
    bits = np.frombuffer(column.buffers()[1] or b"", np.uint8)
    return np.unpackbits(bits, count=column.offset + len(column), bitorder="little")[column.offset :].astype(np.bool_)


def binaries(column: Any) -> npt.NDArray[np.uint8]:
    """A column of bytes of one width. Shape (rows, width)."""
    width = column.type.byte_width
    start = column.offset * width
    return np.frombuffer(column.buffers()[1], np.uint8, len(column) * width, start).reshape(-1, width)


def column(values: npt.NDArray[Any]) -> Any:
    """Numbers, truth values (rows,) or bytes (rows, width) as a column."""
    if values.ndim > 1:
        return _of(pa.binary(values.shape[1]), len(values), values)
    if values.dtype == np.bool_:
        return _of(pa.bool_(), len(values), np.packbits(values, bitorder="little"))
    return _of(pa.from_numpy_dtype(values.dtype), len(values), values)


def lists(ends: npt.NDArray[np.int32], values: npt.NDArray[Any]) -> Any:
    """A column of lists: ``values`` cut at ``ends``, which begin with 0."""
    return pa.ListArray.from_arrays(column(ends), column(values))


def _of(kind: Any, length: int, values: npt.NDArray[Any]) -> Any:
    return pa.Array.from_buffers(kind, length, [None, pa.py_buffer(np.ascontiguousarray(values))])
