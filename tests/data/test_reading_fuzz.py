"""Bytes that nobody meant: every reader gives rows or says what is wrong, whatever it is given."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glm_lightning.data.judging.kinds import FILE
from glm_lightning.data.reading import Problems, read

ROWS: list[dict[str, Any]] = [{"q": f"问题 {i}", "a": [{"y": i}, {"y": -i}]} for i in range(40)]
FLAT = [{"q": row["q"], "a": "1"} for row in ROWS]


def _arrow(opener: Callable[..., Any]) -> bytes:
    table, sink = pa.Table.from_pylist(ROWS), pa.BufferOutputStream()
    with opener(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())


def _parquet() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(ROWS), sink)
    return bytes(sink.getvalue().to_pybytes())


def _zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return bytes(sink.getvalue().to_pybytes())


LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
CSV = "q,a\n" + "".join(f'"{row["q"]}",{row["a"]}\n' for row in FLAT)
FILES = {
    "lines.jsonl": LINES.encode(),
    "array.json": json.dumps(ROWS, ensure_ascii=False, indent=1).encode(),
    "table.csv": CSV.encode(),
    "table.tsv": CSV.replace(",", "\t").encode(),
    "text.txt": "\n".join(row["q"] for row in ROWS).encode(),
    "columns.parquet": _parquet(),
    "file.arrow": _arrow(pa.ipc.new_file),
    "stream.arrow": _arrow(pa.ipc.new_stream),
    "lines.jsonl.gz": gzip.compress(LINES.encode(), mtime=0),
    "lines.jsonl.zst": _zstd(LINES.encode()),
    "wide.jsonl": LINES.encode("utf-16"),
}
LOSSLESS = {"lines.jsonl", "text.txt"}
"""Files of which every line stands for itself, so that lines that are no rows can be counted."""


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def outcome(path: Path, content: bytes, **how: Any) -> tuple[list[dict[str, Any]], list[Any]]:
    path.write_bytes(content)
    problems = Problems(limit=1_000_000)
    return [row.value for row in read(path, problems, **how)], problems.texts


def damaged(content: bytes) -> st.SearchStrategy[bytes]:
    """The content with some bytes changed, a piece left out, doubled or put in."""

    @st.composite
    def draw_one(draw: Callable[..., Any]) -> bytes:
        raw = bytearray(content)
        for _ in range(draw(st.integers(1, 3))):
            start = draw(st.integers(0, max(len(raw) - 1, 0)))
            stop = min(start + draw(st.integers(0, 12)), len(raw))
            raw[start:stop] = draw(st.one_of(st.binary(max_size=12), st.just(bytes(raw[start:stop]) * 2)))
        return bytes(raw[: draw(st.integers(0, len(raw)))]) if draw(st.booleans()) else bytes(raw)

    return draw_one()


@pytest.mark.parametrize("name", FILES)
def test_sound_files_come_back_whole(scratch: Path, name: str) -> None:
    expected: list[Any] = FLAT if name.startswith("table") else ROWS
    if name.endswith(".txt"):
        expected = [{"text": row["q"]} for row in ROWS]
    assert outcome(scratch / name, FILES[name]) == (expected, [])


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=60, deadline=2000)
@given(data=st.data())
def test_damaged_files_give_rows_or_problems(scratch: Path, name: str, data: st.DataObject) -> None:
    rows, problems = outcome(scratch / name, data.draw(damaged(FILES[name])))
    assert rows or problems
    if name in LOSSLESS and not any(problem.kind == FILE for problem in problems):
        lines = (scratch / name).read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
        blank = [not (line.decode().strip() if name == "text.txt" else line.strip(b" \t\r")) for line in lines]
        assert len(rows) + len(problems) == blank.count(False)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.txt", "a.parquet", "a.arrow", "a.gz"])
@settings(max_examples=40, deadline=2000)
@given(
    content=st.binary(max_size=80), start=st.sampled_from([b"", b"\x1f\x8b", b"PAR1", b"ARROW1\0\0", b"[", b"\xff\xfe"])
)
def test_any_bytes_give_rows_or_problems(scratch: Path, name: str, content: bytes, start: bytes) -> None:
    rows, problems = outcome(scratch / name, start + content)
    assert rows or problems


@pytest.mark.parametrize("encoding", ["gb18030", "utf-16-le", "big5", "utf-7"])
@settings(max_examples=30, deadline=2000)
@given(content=st.binary(max_size=80))
def test_any_bytes_in_a_named_encoding(scratch: Path, encoding: str, content: bytes) -> None:
    rows, problems = outcome(scratch / "a.jsonl", content, encoding=encoding)
    assert rows or problems


def test_reading_can_be_left_at_any_row(scratch: Path) -> None:
    """What reading has opened is closed, and nothing is left on disk."""
    for name, content in FILES.items():
        path = scratch / name
        path.write_bytes(content)
        rows: Iterator[Any] = read(path, Problems())
        next(rows)
        rows.close()  # type: ignore[attr-defined]
    assert {path.name for path in scratch.iterdir()} >= set(FILES)
    assert not [path for path in scratch.iterdir() if "part" in path.name]
