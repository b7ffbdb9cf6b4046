from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glm_lightning.data.reading import Problems, json_array, read

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=4), children, max_size=3),
    max_leaves=6,
)
ROWS = st.lists(st.dictionaries(st.text(max_size=4), JSON, max_size=3), min_size=1, max_size=5)


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reading")


def outcome(path: Path) -> tuple[list[tuple[int, object]], list[str]]:
    problems = Problems()
    rows = [(row.line, row.value) for row in read(path, problems)]
    return rows, problems.texts


def of_bytes(folder: Path, content: bytes, name: str = "x.jsonl") -> tuple[list[tuple[int, object]], list[str]]:
    path = folder / name
    path.write_bytes(content)
    return outcome(path)


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, blank=st.integers(0, 2), bom=st.booleans(), crlf=st.booleans(), ascii_only=st.booleans())
def test_json_lines_come_back_with_their_lines(
    scratch: Path, rows: list[dict[str, object]], blank: int, bom: bool, crlf: bool, ascii_only: bool
) -> None:
    end = "\r\n" if crlf else "\n"
    text = "".join(json.dumps(row, ensure_ascii=ascii_only) + end * (1 + blank) for row in rows)
    found, problems = of_bytes(scratch, b"\xef\xbb\xbf" * bom + text.encode("utf-8"))
    assert found == [(1 + i * (1 + blank), row) for i, row in enumerate(rows)]
    assert problems == []


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, indent=st.sampled_from([None, 0, 2]), bom=st.booleans())
def test_arrays_come_back_with_the_line_each_element_starts_on(
    scratch: Path, rows: list[dict[str, object]], indent: int | None, bom: bool
) -> None:
    text = json.dumps(rows, ensure_ascii=False, indent=indent)
    found, problems = of_bytes(scratch, b"\xef\xbb\xbf" * bom + text.encode("utf-8"), "x.json")
    assert [value for _, value in found] == rows
    assert problems == []
    lines = text.split("\n")
    for line, value in found if indent is not None else ():
        rest = "\n".join(lines[line - 1 :]).lstrip()
        assert json.JSONDecoder().raw_decode(rest)[0] == value


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, indent=st.sampled_from([None, 1]), block=st.integers(1, 9))
def test_an_array_reads_the_same_in_blocks_of_any_size(
    scratch: Path, rows: list[dict[str, object]], indent: int | None, block: int
) -> None:
    content = json.dumps(rows, ensure_ascii=False, indent=indent).encode()
    whole = of_bytes(scratch, content)
    faulty = of_bytes(scratch, content[:-3] + b"}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_array, "_BLOCK", block)
        patch.setattr(json_array, "_LONGEST_WORD", 16)
        assert of_bytes(scratch, content) == whole
        assert len(of_bytes(scratch, content[:-3] + b"}")[1]) == len(faulty[1]) == 1


def test_an_element_that_a_block_cuts_is_not_two(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b'[1234567890,{"a":1}, true ,"word", 12.5e3]'
    whole = of_bytes(scratch, content)
    assert len(whole[1]) == 4
    for block in range(1, 9):
        monkeypatch.setattr(json_array, "_BLOCK", block)
        assert of_bytes(scratch, content) == whole


def test_a_fault_far_into_an_array_has_its_place(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_array, "_BLOCK", 8)
    rows, problems = of_bytes(scratch, b'[{"a":1},\n {"b":2},\n  {"c": x}]')
    assert [line for line, _ in rows] == [1, 2]
    assert "x.jsonl:3:9 (character 29): not JSON: Expecting value" in problems[0]


def test_line_separators_of_unicode_are_no_line_ends(scratch: Path) -> None:
    row = {"a": "x\u2028y\u2029z\u0085w"}
    found, _ = of_bytes(scratch, f"{json.dumps(row, ensure_ascii=False)}\n{{}}\n".encode())
    assert found == [(1, row), (2, {})]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"a":1}\n# comment\n', ["x.jsonl:2: not JSON", "# comment"]),
        (b'\n\n{"a":1}{"a":2}\n', ["x.jsonl:3: more than one JSON value"]),
        (b'1\n"t"\nnull\n[1]\n', ["x.jsonl:1: a row must be an object, not a number", ":2: ", ":3: ", ":4: ", "array"]),
        (b'{"a":NaN}\n', ["x.jsonl:1: NaN is not JSON"]),
        (b'{"a":-Infinity}\n', ["x.jsonl:1: -Infinity is not JSON"]),
        (b'{"a":"raw \x01"}\n', ["x.jsonl:1: not JSON: Invalid control character"]),
        (b'{"a":1,"b":{"c":1,"c":2}}\n', ["x.jsonl:1: the key 'c' stands twice"]),
        (b'{"a":1}\n{"a":"\xe4 caf\xe9"}\n', ["x.jsonl:2: byte 7 of the line (0xe4) is not UTF-8"]),
        ('{"a":1}\n{"a":"这是一条中文数据，编码不对。"}\n'.encode("gbk"),
         ["looks like GBK", "line 2", "data.encoding=gb18030", "iconv"]),
        (b"", ["no rows"]),
        (b" \n\n", ["no rows"]),
        (b"[]", ["no rows"]),
        (b"[ ]\n", ["no rows"]),
        (b'{\n "a": 1\n}\n', ["x.jsonl:1: not JSON lines", "several lines"]),
        (b"[\n1\n,2]", ["x.jsonl:2: a row must be an object", ":3: a row"]),
        (b"[" * 100_000, ["nested too deeply"]),
        (b'{"a":' * 100_000, ["nested too deeply"]),
        (b'{"a":' + b"9" * 5000 + b"}", ["x.jsonl:1: "]),
        (b'[{"a":1},\n {"a', ["x.jsonl:2:3 ", "Unterminated string", "is it cut off"]),
        (b'[{"a":1},', ["is it cut off"]),
        (b'[{"a":1}\n {"a":2}]', ["x.jsonl:2:2 ", "Expecting ',' or ']'"]),
        (b'[{"a":1},\n]', ["x.jsonl:2:1 ", "comma"]),
        (b'[{"a":1},\n 2]', ["x.jsonl:2: a row must be an object, not a number: '2'"]),
        (b'[{"a":1}]\n[{"a":2}]', ["x.jsonl:2: more than one JSON value"]),
        (b'[{"a":1},\n{"a":"\xff"}]', ["x.jsonl:2: byte 7 of the line"]),
        (gzip.compress(b'{"a":1}' * 99, mtime=0)[:-9], ["gzip-compressed", "cut off or damaged"]),
        (b"PAR1garbage", ["not Parquet"]),
        ('{"a":1}'.encode("utf-16-le"), ["not text", "data.encoding=utf-16-le"]),
        (b" <!DOCTYPE html><html></html>", ["HTML page"]),
        (b"PK\x03\x04", ["zip archive"]),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", ["Git LFS pointer", "git lfs pull"]),
    ],
)  # fmt: skip
def test_each_fault_is_named_with_its_place(scratch: Path, content: bytes, expected: list[str]) -> None:
    _, problems = of_bytes(scratch, content)
    for text in expected:
        assert text in "\n".join(problems)


def test_rows_behind_a_bad_line_are_still_read(scratch: Path) -> None:
    rows, problems = of_bytes(scratch, b'{"a":1}\n{"a":\n{"a":3}\nx\n')
    assert [line for line, _ in rows] == [1, 3]
    assert len(problems) == 2


def test_problems_beyond_the_limit_are_counted(scratch: Path) -> None:
    _, problems = of_bytes(scratch, b"x\n" * 50)
    assert len(problems) == 21
    assert "30 more" in problems[-1]


@settings(max_examples=150, deadline=None)
@given(content=st.binary(max_size=60), array=st.booleans())
def test_no_bytes_pass_in_silence_or_raise(scratch: Path, content: bytes, array: bool) -> None:
    rows, problems = of_bytes(scratch, b"[" * array + content)
    assert rows or problems


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, cut=st.integers(1, 40))
def test_a_cut_array_is_never_read_in_silence(scratch: Path, rows: list[dict[str, object]], cut: int) -> None:
    content = json.dumps(rows).encode()
    _, problems = of_bytes(scratch, content[: max(1, len(content) - cut)])
    assert problems


def test_how_much_is_read_rises_to_one(scratch: Path) -> None:
    for content in (b'{"a":1}\n{"a":2}\n', b'[{"a":1},{"a":2}]'):
        path = scratch / "done.jsonl"
        path.write_bytes(content)
        shares = [row.done for row in read(path, Problems())]
        assert 0 < shares[0] <= shares[1] <= 1
    path.write_bytes(b'{"a":1}\n' * 50_000)
    shares = [row.done for row in read(path, Problems())]
    assert shares == sorted(shares)
    assert shares[0] < 0.5
    assert shares[-1] == 1


@pytest.mark.parametrize(
    ("name", "content", "found", "said"),
    [
        ("a.jsonl", b'{"a": 1},\n{"a": 2}\n', [(2, {"a": 2})], "a comma behind the object"),
        ("a.jsonl", b'{"a": 1}\n\xef\xbb\xbf{"a": 2}\n', [(1, {"a": 1})], "a byte order mark within the file"),
        (
            "a.csv",
            b"x,y\n1,2\n\xef\xbb\xbfx,y\n3,4\n",
            [(2, {"x": "1", "y": "2"}), (4, {"x": "3", "y": "4"})],
            "repeats",
        ),
        ("a.csv", b"x,y\r1,2\r", [], "a carriage return that ends no line"),
        ("a.csv", b"\xd0\xcf\x11\xe0\xa1\xb1" + bytes(90), [], "old Office"),
        ("a.jsonl", bytes(257) + b"ustar" + bytes(90), [], "a tar archive"),
        ("a.csv", b"x,y\nna\xefve,2\n", [], "say what the file is in: data.encoding"),
    ],
)
def test_what_is_often_wrong_is_said_by_its_name(
    scratch: Path, name: str, content: bytes, found: list[tuple[int, object]], said: str
) -> None:
    rows, problems = of_bytes(scratch, content, name)
    assert rows == found
    assert [said in problem for problem in problems] == [True]


def test_line_ends_in_a_cell_are_those_of_other_texts(scratch: Path) -> None:
    rows, problems = of_bytes(scratch, b'x,y\r\n"1\r\n2",3\r\n', "a.csv")
    assert (rows, problems) == ([(2, {"x": "1\n2", "y": "3"})], [])


@settings(max_examples=30, deadline=None)
@given(rows=ROWS, lines=st.sets(st.integers(1, 8)), array=st.booleans())
def test_rows_of_some_lines_are_those_among_all(
    scratch: Path, rows: list[dict[str, object]], lines: set[int], array: bool
) -> None:
    path = scratch / "some.jsonl"
    texts = [json.dumps(row) for row in rows]
    path.write_text("[" + ",\n".join(texts) + "]" if array else "\n".join(texts), encoding="utf-8")
    assert [row for row in outcome(path)[0] if row[0] in lines] == [
        (row.line, row.value) for row in read(path, Problems(), lines=lines)
    ]
