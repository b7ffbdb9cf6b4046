"""A file's bytes with compression and encoding undone, and what it is: told by its first bytes, then by its name."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, BinaryIO, Literal, final

import pyarrow as pa

Kind = Literal["json", "table", "text", "parquet", "arrow"]

KINDS: dict[str, Kind] = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "table",
    ".tsv": "table",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".txt": "text",
}
"""What files of a name are; those of other names hold JSON."""

PACKED = (".gz", ".zst")
"""What may stand behind these names."""

_BLOCK = 1 << 16
_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_COLUMNAR: dict[bytes, Kind] = {b"PAR1": "parquet", b"ARROW1": "arrow", b"\xff\xff\xff\xff": "arrow"}
_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16's, which it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_FOREIGN = {
    b"PK\x03\x04": "is a zip archive or an Excel workbook; unpack it, or save it as CSV",
    b"\xd0\xcf\x11\xe0": "is a document of an old Office, such as an Excel workbook; save it as CSV",
    b"%PDF": "is a PDF document, not data",
    b"7z\xbc\xaf": "is a 7z archive; unpack it",
    b"Rar!": "is a rar archive; unpack it",
    b"BZh": "is bzip2-compressed; unpack it (bunzip2)",
    b"\xfd7zXZ": "is xz-compressed; unpack it (unxz)",
    b"version https://git-lfs": "is a Git LFS pointer, not the data; run git lfs pull",
}
_PAGES = (b"<!doctype html", b"<html")


class NoDataError(ValueError):
    """The file as a whole is no data; the text goes on from its name."""


@final
@dataclass(frozen=True)
class Content:
    """The bytes of an open file, unpacked; those of a text in UTF-8 without a byte order mark."""

    stream: BinaryIO
    kind: Kind
    head: bytes  # the first bytes of the stream, as far as they can be decoded
    suffix: str
    file: Any  # as it lies on disk
    size: int

    @property
    def done(self) -> float:
        """How much of the file is read (0 to 1)."""
        return min(float(self.file.tell()) / self.size, 1.0)


def suffix_of(path: PurePath) -> str:
    """What a name ends with, in small letters, the ending of a compression left out."""
    name = path.name.lower()
    return PurePath(next((name.removesuffix(end) for end in PACKED if name.endswith(end)), name)).suffix


@contextmanager
def opened(path: Path, *, encoding: str | None) -> Iterator[Content]:
    """Open a file for reading.

    Args:
        path: the file.
        encoding: of a text without a byte order mark; None is UTF-8.

    Raises:
        NoDataError: it is something else than data.
    """
    head, suffix = _head(path), suffix_of(path)
    kind = _kind(head, suffix)
    encoding = _encoding(head, encoding) if kind in ("json", "table", "text") else None
    with path.open("rb") as file, _unpacked(file) as unpacked:
        stream = unpacked
        if encoding not in (None, "utf-8"):
            stream = io.BufferedReader(_Recoded(unpacked, str(encoding)), _BLOCK)
        elif head.startswith(codecs.BOM_UTF8):
            stream.read(len(codecs.BOM_UTF8))
        yield Content(stream, kind, _in_utf8(head, encoding), suffix, file, max(path.stat().st_size, 1))


def _head(path: Path) -> bytes:
    with path.open("rb") as file, _unpacked(file) as stream:
        return stream.read(_BLOCK)


@contextmanager
def _unpacked(file: BinaryIO) -> Iterator[BinaryIO]:
    start = file.read(4)
    file.seek(0)
    compression = next((name for magic, name in _COMPRESSIONS.items() if start.startswith(magic)), None)
    if compression is None:
        yield file
        return
    try:
        with pa.CompressedInputStream(pa.PythonFile(file, "r"), compression) as stream:
            yield io.BufferedReader(stream, _BLOCK)
    except OSError as error:
        raise NoDataError(f"is {compression}-compressed, and cut off or damaged ({error}); get it again") from error


def _kind(head: bytes, suffix: str) -> Kind:
    named = KINDS.get(suffix, "json")
    for magic, what in _FOREIGN.items():
        if head.startswith(magic):
            raise NoDataError(what)
    if head[257:262] == b"ustar":
        raise NoDataError("is a tar archive; unpack it")
    if head.lstrip().lower().startswith(_PAGES) and named != "text":
        raise NoDataError("is an HTML page, not data; the download has failed: get it again")
    found = next((kind for magic, kind in _COLUMNAR.items() if head.startswith(magic)), None)
    if head and found is None and named in ("parquet", "arrow"):
        raise NoDataError(f"is no {named.capitalize()} file, for it begins with {head[:12]!r}; get it again")
    if found is None and named == "text" and head.lstrip(b"\xef\xbb\xbf \t\r\n")[:2] in (b'{"', b"[{"):
        return "json"
    return found or named


def _encoding(head: bytes, named: str | None) -> str:
    """The encoding of a text: its byte order mark's, else the one that is named."""
    if marked := next((name for mark, name in _MARKS.items() if head.startswith(mark)), None):
        return marked
    codec = codecs.lookup(named or "utf-8").name.removesuffix("-sig")
    if codec == "utf-8" and b"\0" in head[:64]:
        raise NoDataError("is not text in UTF-8 (it has zero bytes); if it is UTF-16 say data.encoding=utf-16-le")
    if codec != "utf-8" and not head.isascii() and _is_utf8(head):
        raise NoDataError(f"is UTF-8, though data.encoding says {named}; leave data.encoding out")
    return codec


def _in_utf8(head: bytes, encoding: str | None) -> bytes:
    if encoding in (None, "utf-8"):
        return head.removeprefix(codecs.BOM_UTF8)
    return codecs.getincrementaldecoder(str(encoding))("replace").decode(head).encode("utf-8")


def _is_utf8(head: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return True


@final
class _Recoded(io.RawIOBase):
    """A text in some encoding, as the same text in UTF-8."""

    def __init__(self, stream: BinaryIO, encoding: str) -> None:
        self._stream, self._encoding = stream, encoding
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._pending, self._position = b"", 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        more = True
        while more and not self._pending:
            more = self._decode_block()
        taken = self._pending[: len(buffer)]
        buffer[: len(taken)] = taken
        self._pending = self._pending[len(taken) :]
        return len(taken)

    def _decode_block(self) -> bool:
        """Take the next bytes; whether there may be more."""
        block = self._stream.read(_BLOCK)
        try:
            self._pending = self._decoder.decode(block, final=not block).encode("utf-8")
        except UnicodeError as error:
            where = f"between bytes {self._position:,} and {self._position + len(block):,}"
            raise NoDataError(
                f"is not {self._encoding} {where} ({error}); name its encoding in data.encoding"
            ) from error
        self._position += len(block)
        return bool(block)
