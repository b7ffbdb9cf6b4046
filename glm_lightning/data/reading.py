"""JSON and JSON lines from files, folders and globs: rows with the line they start on, every fault with its place."""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from glm_lightning.types import UserError

_SUFFIXES = (".json", ".jsonl", ".ndjson")
_SPACE = re.compile(r"[ \t\r\n]*")
_SHOWN = 60
_BOM = b"\xef\xbb\xbf"
_FOREIGN = {
    b"\x1f\x8b": "is gzip-compressed; unpack it (gunzip)",
    b"\x28\xb5\x2f\xfd": "is zstd-compressed; unpack it (unzstd)",
    b"PK\x03\x04": "is a zip archive; unpack it",
    b"PAR1": "is a Parquet file; write it as JSON lines",
    b"ARROW1": "is an Arrow file; write it as JSON lines",
    b"\xff\xfe": "is UTF-16 text; write it as UTF-8 (iconv -f UTF-16 -t UTF-8)",
    b"\xfe\xff": "is UTF-16 text; write it as UTF-8 (iconv -f UTF-16 -t UTF-8)",
    b"version https://git-lfs": "is a Git LFS pointer, not the data; run git lfs pull",
}


class Row(NamedTuple):
    """One object of a file, the line it starts on (1-based), and how much of the file is read (0 to 1)."""

    value: dict[str, Any]
    line: int
    done: float


class Problems:
    """Collects what is wrong, in order; keeps the first ``limit`` texts of each file and counts the rest."""

    def __init__(self, *, limit: int = 20) -> None:
        self._limit = limit
        self._texts: dict[Path, list[str]] = {}
        self._hidden: dict[Path, int] = {}

    def add(self, path: Path, *texts: str) -> None:
        """Note what is wrong with one row of ``path``."""
        kept = self._texts.setdefault(path, [])
        for text in texts:
            if len(kept) < self._limit:
                kept.append(text)
            else:
                self._hidden[path] = self._hidden.get(path, 0) + 1

    def __bool__(self) -> bool:
        return bool(self._texts)

    @property
    def texts(self) -> list[str]:
        """All kept texts, and how many more each file has."""
        out: list[str] = []
        for path, texts in self._texts.items():
            out += texts
            if path in self._hidden:
                out.append(f"{path}: {self._hidden[path]:,} more problems like these")
        return out


class _RowError(ValueError):
    """Valid JSON that is refused."""


def expand(source: str | Path | Sequence[str | Path], *, key: str) -> list[Path]:
    """The files of a source: a file, a folder (.json, .jsonl and .ndjson below it), a glob, or several of these.

    Args:
        source: what stands in yaml.
        key: its yaml key, for messages.

    Raises:
        UserError: something is not there, or holds no such file.
    """
    files: list[Path] = []
    problems = []
    for entry in [source] if isinstance(source, str | Path) else source:
        found = _expanded(Path(entry).expanduser())
        if not found:
            problems.append(f"{key}: {str(entry)!r} is no file, no folder with {', '.join(_SUFFIXES)} files in it, and "
                            f"no glob that matches one (looked from {Path.cwd()})")  # fmt: skip
        files += [file for file in found if file not in files]
    if problems or not files:
        raise UserError(problems or f"{key} is an empty list: give a file")
    return files


def _expanded(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.suffix in _SUFFIXES and file.is_file())
    return sorted(Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file())  # noqa: PTH207


def read(path: Path, problems: Problems) -> Iterator[Row]:
    """The rows of a JSON array or of JSON lines, told apart by the first character.

    Lines end at ``\\n`` only. What is wrong goes to ``problems``; rows go on after a bad line, and end at the first
    fault of an array.
    """
    with path.open("rb") as stream:
        start = stream.read(64)
    if kind := next((text for magic, text in _FOREIGN.items() if start.startswith(magic)), None):
        problems.add(path, f"{path}: {kind}")
    elif b"\0" in start:
        problems.add(path, f"{path}: is not text (it has zero bytes); give JSON or JSON lines in UTF-8")
    elif _first_character(path) == b"[":
        yield from _array(path, problems)
    else:
        yield from _lines(path, problems)


def _first_character(path: Path) -> bytes:
    with path.open("rb") as stream:
        for line in stream:
            if text := line.removeprefix(_BOM).strip(b" \t\r\n"):
                return text[:1]
    return b""


def _lines(path: Path, problems: Problems) -> Iterator[Row]:
    size, position, rows = max(path.stat().st_size, 1), 0, 0
    decoder = _decoder()
    with path.open("rb") as stream:
        for number, raw in enumerate(stream, start=1):
            position += len(raw)
            raw = raw.removeprefix(_BOM) if number == 1 else raw
            if not raw.strip(b" \t\r\n"):
                continue
            rows += 1
            try:
                text = raw.decode("utf-8").strip(" \t\r\n")
                value, end = decoder.raw_decode(text)
                _check_row(value, text[end:])
            except UnicodeDecodeError as error:
                problems.add(path, _undecodable(path, number, error))
                if _gbk(raw):
                    return
            except (ValueError, RecursionError) as error:
                problems.add(path, f"{path}:{number}: {_reason(error)}: {_short(text)}; give one whole object a line")
                if text in "{[":  # a pretty-printed file: every further line would be wrong for the same reason
                    return
            else:
                yield Row(value, number, position / size)
    if not rows:
        problems.add(path, f"{path}: no rows in the file; give one object a line, or an array of objects")


def _array(path: Path, problems: Problems) -> Iterator[Row]:
    raw = path.read_bytes().removeprefix(_BOM)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        problems.add(path, _undecodable(path, 1 + raw.count(b"\n", 0, error.start), error))
        return
    decoder, line, counted, rows = _decoder(), 1, 0, 0
    position = _skip(text, _skip(text, 0) + 1)
    while text[position : position + 1] != "]":
        line, counted = line + text.count("\n", counted, position), position
        try:
            value, end = decoder.raw_decode(text, position)
            position, last = _separator(text, end)
        except (ValueError, RecursionError) as error:
            problems.add(path, _array_fault(path, text, position, error))
            return
        rows += 1
        try:
            _check_row(value, "")
        except _RowError as error:
            problems.add(path, f"{path}:{line}: {error}: {_short(text[counted:end])}; give objects")
        else:
            yield Row(value, line, end / len(text))
        if last:
            break
    if trailing := text[position + 1 :].strip(" \t\r\n"):
        line = 1 + text.count("\n", 0, _skip(text, position + 1))
        what = f"more than one JSON value: {_short(trailing)} behind the array's end; remove it"
        problems.add(path, f"{path}:{line}: {what}")
    if not rows:
        problems.add(path, f"{path}: no rows in the file: an empty array; give an array of objects")


def _separator(text: str, end: int) -> tuple[int, bool]:
    """Behind an element: where the next one starts, or where the closing bracket is."""
    position = _skip(text, end)
    if text[position : position + 1] == "]":
        return position, True
    if text[position : position + 1] != ",":
        raise json.JSONDecodeError("Expecting ',' or ']'", text, position)
    position = _skip(text, position + 1)
    if text[position : position + 1] == "]":
        raise json.JSONDecodeError("A comma before the closing bracket", text, position)
    return position, False


def _skip(text: str, position: int) -> int:
    found = _SPACE.match(text, position)
    assert found is not None
    return found.end()


def _decoder() -> json.JSONDecoder:
    return json.JSONDecoder(parse_constant=_no_constant, object_pairs_hook=_object)


def _no_constant(name: str) -> None:
    raise _RowError(f"{name} is not JSON; write null or leave the key out")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _RowError(f"the key {next(k for k in keys if keys.count(k) > 1)!r} stands twice in one object")
    return value


def _check_row(value: Any, trailing: str) -> None:
    if trailing:
        raise _RowError("more than one JSON value on the line")
    if not isinstance(value, dict):
        names = {list: "an array", str: "a text", type(None): "null", bool: "a truth value"}
        raise _RowError(f"a row must be an object, not {names.get(type(value), 'a number')}")


def _reason(error: ValueError | RecursionError) -> str:
    if isinstance(error, RecursionError):
        return "brackets nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg.removesuffix(' at')} at character {error.pos + 1}"
    return str(error)


def _array_fault(path: Path, text: str, position: int, error: ValueError | RecursionError) -> str:
    where = error.pos if isinstance(error, json.JSONDecodeError) else position
    line = 1 + text.count("\n", 0, where)
    column = where - text.rfind("\n", 0, where)
    reason = f"not JSON: {error.msg.removesuffix(' at')}" if isinstance(error, json.JSONDecodeError) else _reason(error)
    # strings hold no raw newlines, so one without an end reaches to the end of the file, or is reported otherwise
    cut = where >= len(text.rstrip()) or reason.endswith("Unterminated string starting")
    ended = "; the file ends in the middle of the array: is it cut off?" if cut else ""
    shown = _short(text[max(0, where - 20) : where + 20])
    return f"{path}:{line}:{column} (character {where + 1}): {reason}, near {shown}{ended}; correct the file"


def _undecodable(path: Path, line: int, error: UnicodeDecodeError) -> str:
    if _gbk(error.object):
        return f"{path}: looks like GBK, not UTF-8 (line {line}); convert it: iconv -f GB18030 -t UTF-8"
    before = error.object.rfind(b"\n", 0, error.start) + 1
    byte = error.object[error.start]
    return f"{path}:{line}: byte {error.start - before + 1} of the line (0x{byte:02x}) is not UTF-8; correct it"


def _gbk(raw: bytes) -> bool:
    """Whether bytes that are no UTF-8 read as Chinese in GBK: decodable, and mostly common characters."""
    try:
        text = raw.decode("gb18030")
    except UnicodeDecodeError:
        return False
    foreign = [character for character in text if character > "\x7f"]
    return (
        sum("\u4e00" <= c <= "\u9fff" or "\u3000" <= c <= "\u303f" or c > "\uff00" for c in foreign) > len(foreign) / 2
    )


def _short(text: str) -> str:
    text = text.strip(" \t\r\n")
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")
