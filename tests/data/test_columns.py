from __future__ import annotations

import subprocess
import sys
import textwrap

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from glm_lightning.data import columns

NUMBERS = st.sampled_from([np.int32, np.int64, np.bool_]).flatmap(lambda kind: hnp.arrays(kind, st.integers(0, 40)))


@settings(deadline=None)
@given(values=NUMBERS, data=st.data())
def test_columns_are_what_arrow_makes_and_reads(values: np.ndarray, data: st.DataObject) -> None:
    expected, made = pa.array(values), columns.column(values)
    made.validate(full=True)
    assert made.equals(expected)
    start, length = (data.draw(st.integers(0, len(values))) for _ in range(2))
    read = columns.truths if values.dtype == np.bool_ else columns.numbers
    for part in (made, made.slice(start, length), pa.chunked_array([made.slice(start), made.slice(0, length)])):
        got = read(part)
        assert got.dtype == values.dtype
        assert got.tolist() == part.to_pylist()
    assert read(pa.chunked_array([], made.type)).dtype == values.dtype


@settings(deadline=None)
@given(values=hnp.arrays(np.uint8, st.tuples(st.integers(0, 9), st.integers(1, 20))), start=st.integers(0, 9))
def test_bytes_of_one_width(values: np.ndarray, start: int) -> None:
    made = columns.column(values)
    assert made.to_pylist() == [row.tobytes() for row in values]
    assert columns.binaries(made.slice(start)).tolist() == values[start:].tolist()


@pytest.mark.parametrize("kind", [np.int32, np.bool_])
def test_lists(kind: type) -> None:
    values = np.array([0, 1, 1, 0, 1], kind)
    made = columns.lists(np.array([0, 2, 2, 5], np.int32), values)
    assert made.to_pylist() == [values[:2].tolist(), [], values[2:].tolist()]


def test_pandas_is_not_imported() -> None:
    code = """
    import sys
    import numpy as np
    from glm_lightning.data import columns
    assert columns.numbers(columns.column(np.arange(3))).tolist() == [0, 1, 2]
    assert columns.truths(columns.column(np.ones(3, np.bool_))).all()
    assert columns.binaries(columns.column(np.ones((3, 4), np.uint8))).all()
    columns.lists(np.array([0, 2, 3], np.int32), np.ones(3, np.bool_))
    assert "pandas" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)
