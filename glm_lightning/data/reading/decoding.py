"""Bytes that are not UTF-8: where, and what they look like."""

from __future__ import annotations

import codecs
from pathlib import Path

from glm_lightning.data.judging.kinds import FILE, Fault


def undecodable(path: Path, line: int, error: UnicodeDecodeError, *, kind: str = "encoding") -> Fault:
    """What is said of bytes that are not UTF-8; if they look like GBK it is a fault of the whole file."""
    if looks_like_gbk(error.object):
        advice = "say data.encoding=gb18030, or convert it: iconv -f GB18030 -t UTF-8"
        return Fault(FILE, f"{path}: looks like GBK, not UTF-8 (line {line}); {advice}")
    before = error.object.rfind(b"\n", 0, error.start) + 1
    byte = error.object[error.start]
    where = f"byte {error.start - before + 1} of the line (0x{byte:02x})"
    return Fault(kind, f"{path}:{line}: {where} is not UTF-8; correct it, or say what the file is in: data.encoding")


def looks_like_gbk(raw: bytes) -> bool:
    """Whether bytes that are no UTF-8 read as Chinese in GBK: decodable, and many characters are common ones.

    The common ones are GB 2312's; accented letters of Latin encodings before others read as rarer ones.
    """
    try:
        text = codecs.getincrementaldecoder("gb18030")().decode(raw)  # the last character may be cut off
    except UnicodeDecodeError:
        return False
    foreign = "".join(character for character in text if character > "\x7f")
    return 3 * len(foreign.encode("gb2312", "ignore")) // 2 > len(foreign)
