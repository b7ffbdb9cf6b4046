"""CSV, Parquet, Arrow, plain text; compressions and encodings."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from glm_lightning.data.judging.kinds import FILE
from glm_lightning.data.reading import Problems, columnar, read

ROWS = [{"q": "你好", "a": 'x, "y"\nz'}, {"q": "b", "a": ""}, {"q": "c", "a": "é"}]
CSV = 'q,a\n你好,"x, ""y""\nz"\nb,\nc,é\n'


def outcome(path: Path, **how: Any) -> tuple[list[tuple[int, Any]], list[str]]:
    problems = Problems()
    return [(row.line, row.value) for row in read(path, problems, **how)], problems.texts


def values(path: Path, **how: Any) -> list[Any]:
    rows, problems = outcome(path, **how)
    assert problems == []
    return [value for _, value in rows]


def written(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def packed(name: str, content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, name) as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def parquet(path: Path, rows: list[dict[str, Any]], **how: Any) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path, **how)
    return path


def arrow(path: Path, rows: list[dict[str, Any]], *, stream: bool = False) -> Path:
    table = pa.Table.from_pylist(rows)
    opener = pa.ipc.new_stream if stream else pa.ipc.new_file
    with opener(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return path


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_rows_have_the_line_they_start_on(tmp_path: Path, delimiter: str) -> None:
    name = "a.tsv" if delimiter == "\t" else "a.csv"
    text = CSV.replace("q,a", f"q{delimiter}a").replace("你好,", f"你好{delimiter}").replace("b,", f"b{delimiter}")
    rows, problems = outcome(written(tmp_path / name, text.replace("c,é", f"\nc{delimiter}é")))
    assert problems == []
    assert rows == [(2, ROWS[0]), (4, ROWS[1]), (6, ROWS[2])]


def test_csv_as_windows_writes_it(tmp_path: Path) -> None:
    content = "q,a\r\n你好,x\r\n".encode("utf-8-sig")
    assert values(written(tmp_path / "a.csv", content)) == [{"q": "你好", "a": "x"}]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("q,a\n1,2,3\n4,5\n", ["a.csv:2: 3 fields where the first line names 2 columns (q, a)"]),
        ("q,a\nx\n", ["a.csv:2: 1 fields"]),
        ('q,a\n"open, 1\n2,3\n', ["a.csv:2: not CSV: a quote that is opened here is never closed", "not read"]),
        ('q,a\n1,2\n"x"y,3\n', ["a.csv:3: not CSV"]),
        ("q,q\n1,2\n", ["the column 'q' stands twice"]),
        ("q,,\n1,2,3\n", ["several columns have no name"]),
        ("q,a\n", ["no rows in the file"]),
        ("", ["no rows in the file"]),
        ("q,a\n1,2\r3,4\n", ["a.csv:2: not CSV"]),
    ],
)
def test_faults_of_csv_are_named_with_their_line(tmp_path: Path, text: str, expected: list[str]) -> None:
    _, problems = outcome(written(tmp_path / "a.csv", text))
    for part in expected:
        assert part in "\n".join(problems)


def test_a_csv_in_gbk_is_refused_with_what_to_say(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "问题,回答\n你好，请问你是谁,我是一个助手\n".encode("gbk"))
    assert "data.encoding=gb18030" in outcome(path)[1][0]
    assert values(path, encoding="gb18030") == [{"问题": "你好，请问你是谁", "回答": "我是一个助手"}]


def test_parquet_and_arrow_come_by_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columnar, "_BATCH", 2)
    files = [
        parquet(tmp_path / "a.parquet", ROWS, row_group_size=2),
        arrow(tmp_path / "a.arrow", ROWS),
        arrow(tmp_path / "b.arrow", ROWS, stream=True),
        arrow(tmp_path / "named.jsonl", ROWS),
    ]
    for file in files:
        rows, problems = outcome(file)
        assert (rows, problems) == (list(enumerate(ROWS, start=1)), [])


def test_what_columns_fill_up_in_objects_is_left_out(tmp_path: Path) -> None:
    rows = [{"m": [{"role": "user", "content": "q"}, {"role": "a", "calls": [{"x": 1}]}]}, {"m": None}]
    assert values(parquet(tmp_path / "a.parquet", rows)) == rows


def test_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.table([pa.array(["x"]), pa.array(["y"])], names=["q", "q"])
    pq.write_table(table, tmp_path / "a.parquet")
    assert "'q' stands twice" in outcome(tmp_path / "a.parquet")[1][0]


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "b.arrow"])
def test_a_columnar_file_that_is_cut_off_is_told(tmp_path: Path, name: str) -> None:
    make = {"a.parquet": parquet, "a.arrow": arrow, "b.arrow": lambda p, r: arrow(p, r, stream=True)}[name]
    whole = make(tmp_path / name, ROWS * 9).read_bytes()
    for cut in range(1, len(whole), 41):
        assert outcome(written(tmp_path / name, whole[:cut]))[1]
    for cut in range(1, 20):
        assert outcome(written(tmp_path / name, whole[:-cut]))[1]


def test_a_name_that_lies_is_told(tmp_path: Path) -> None:
    assert "is no Parquet file" in outcome(written(tmp_path / "a.parquet", b"not found"))[1][0]
    assert "no rows" in outcome(written(tmp_path / "b.parquet", b""))[1][0]


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_packed_files_of_every_kind(tmp_path: Path, compression: str) -> None:
    end = {"gzip": ".gz", "zstd": ".zst"}[compression]
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    plain = {
        "a.jsonl": lines,
        "a.json": json.dumps(ROWS).encode(),
        "a.csv": CSV.encode(),
        "a.parquet": parquet(tmp_path / "x", ROWS).read_bytes(),
        "a.arrow": arrow(tmp_path / "y", ROWS).read_bytes(),
        "b.arrow": arrow(tmp_path / "z", ROWS, stream=True).read_bytes(),
    }
    for name, content in plain.items():
        assert values(written(tmp_path / f"{name}{end}", packed(compression, content))) == ROWS, name
    assert values(written(tmp_path / "unnamed.jsonl", packed(compression, lines))) == ROWS
    assert list(tmp_path.glob("*tmp*")) == []


def test_joined_gzip_members_are_one_file(tmp_path: Path) -> None:
    content = gzip.compress(b'{"a":1}\n') + gzip.compress(b'{"a":2}\n')
    assert values(written(tmp_path / "a.jsonl.gz", content)) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_a_packed_file_that_is_cut_off_or_changed_is_told(tmp_path: Path, compression: str) -> None:
    lines = [json.dumps({"a": i, "b": str(i * 7919 % 1009) * 9}) for i in range(20_000)]
    whole = packed(compression, ("\n".join(lines) + "\n").encode())
    for content in (whole[: len(whole) * 3 // 4], whole[:5000] + bytes(99) + whole[5099:]):
        problems = Problems(limit=1_000_000)
        list(read(written(tmp_path / "a.jsonl", content), problems))
        assert FILE in {problem.kind for problem in problems.texts}  # type: ignore[attr-defined]
    _, problems_of_first = outcome(written(tmp_path / "a.jsonl", whole[: len(whole) * 3 // 4]))
    assert f"is {compression}-compressed, and cut off or damaged" in problems_of_first[-1]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "utf-16-le", "gb18030", "big5", "shift_jis"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    text = "你好" if encoding != "shift_jis" else "東京"
    lines = "".join(json.dumps({"a": text * i, "b": "\n"}, ensure_ascii=False) + "\n" for i in range(1, 300))
    marked = encoding in ("utf-8-sig", "utf-16", "utf-32")
    content = lines.encode(encoding)
    rows = values(written(tmp_path / "a.jsonl", content), encoding=None if marked else encoding)
    assert [row["a"] for row in rows] == [text * i for i in range(1, 300)]
    array = json.dumps(rows, ensure_ascii=False, indent=1).encode(encoding)
    assert values(written(tmp_path / "a.json", array), encoding=None if marked else encoding) == rows


def test_utf_16_of_the_other_end_by_its_mark(tmp_path: Path) -> None:
    assert values(written(tmp_path / "a.jsonl", b"\xfe\xff" + '{"a":"好"}'.encode("utf-16-be"))) == [{"a": "好"}]


def test_a_named_encoding_that_is_wrong_is_told(tmp_path: Path) -> None:
    utf8 = written(tmp_path / "a.jsonl", '{"a":"你好"}')
    assert "is UTF-8, though data.encoding says gb18030" in outcome(utf8, encoding="gb18030")[1][0]
    latin = written(tmp_path / "b.jsonl", b'{"a":"\xff\xff"}\n' * 3)
    assert "is not gb18030" in outcome(latin, encoding="gb18030")[1][0]
    assert values(written(tmp_path / "c.jsonl", '{"a":1}'), encoding="gb18030") == [{"a": 1}]


TEXT = "\n\na\nb\r\n\n  \nc\n"


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("line", [(3, "a"), (4, "b"), (7, "c")]),
        ("paragraph", [(3, "a\nb"), (7, "c")]),
        ("file", [(1, "\n\na\nb\n\n  \nc")]),
    ],
)
def test_documents_of_plain_text(tmp_path: Path, unit: str, expected: list[tuple[int, str]]) -> None:
    rows, problems = outcome(written(tmp_path / "a.txt", TEXT), documents=unit)
    assert (rows, problems) == ([(line, {"text": text}) for line, text in expected], [])


def test_json_lines_named_txt_are_json_lines(tmp_path: Path) -> None:
    assert values(written(tmp_path / "a.txt", '\n{"a": "b"}\n')) == [{"a": "b"}]


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_plain_text_without_text_is_told(tmp_path: Path, content: bytes) -> None:
    assert "no rows" in outcome(written(tmp_path / "a.txt", content))[1][0]


def test_what_ends_a_file_early_is_a_fault_of_the_file(tmp_path: Path) -> None:
    """Such a file is never gone on from, whatever happens to single bad rows."""
    contents = {
        "a.json": b'[{"a":1}, x]', "a.csv": b'a\n1\n"', "a.txt": b"a\n\xff\nb", "a.parquet": b"PAR1xxxx",
        "a.jsonl": "啊这里都是中文".encode("gbk"), "b.jsonl": b"{\n", "c.jsonl": b"\x1f\x8bx",
    }  # fmt: skip
    for name, content in contents.items():
        problems = Problems()
        list(read(written(tmp_path / name, content), problems))
        assert [problem.kind for problem in problems.texts] == [FILE], name  # type: ignore[attr-defined]
    for content, kind in ((b"{}\nx", "syntax"), (b'{"a":1,"a":2}\n{}', "duplicate_key"), (b'{"a":"\xff"}', "encoding")):
        problems = Problems()
        list(read(written(tmp_path / "a.jsonl", content), problems))
        assert [problem.kind for problem in problems.texts] == [kind]  # type: ignore[attr-defined]
