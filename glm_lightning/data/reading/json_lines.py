"""JSON lines: one object a line."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator
from pathlib import Path

from glm_lightning.data.judging.kinds import FILE, Fault
from glm_lightning.data.reading.base import Problems, Row, RowError, no_rows, short
from glm_lightning.data.reading.decoding import looks_like_gbk, undecodable
from glm_lightning.data.reading.json_values import check_row, decoder, fault, reason
from glm_lightning.data.reading.opening import Content

_ADVICE = "give one whole object a line"


def rows(content: Content, path: Path, problems: Problems, lines: Collection[int] | None = None) -> Iterator[Row]:
    """The rows, in order, of all lines or some. Lines end at ``\\n`` only; reading goes on behind a bad one."""
    decode, found = decoder().raw_decode, False
    for number, raw in _wanted(content, lines):
        if not raw.strip(b" \t\r\n"):
            continue
        found = True
        try:
            text = raw.decode("utf-8").strip(" \t\r\n")
            if text.startswith("\ufeff"):
                raise RowError("syntax", "a byte order mark within the file: were files joined?")
            value, end = decode(text)
            check_row(value, text[end:])
        except UnicodeDecodeError as error:
            problems.add(path, undecodable(path, number, error))
            if looks_like_gbk(raw):
                return
        except (ValueError, RecursionError) as error:
            if text in "{[":  # every further line would be wrong for the same reason
                problems.add(path, _pretty_printed(path, number))
                return
            problems.add(path, fault(error, f"{path}:{number}: {reason(error)}: {short(text)}; {_ADVICE}"))
        else:
            yield Row(value, number, content.done)
    if not found:
        problems.add(path, no_rows(path, "give one object a line, or an array of objects"))


def _wanted(content: Content, lines: Collection[int] | None) -> Iterator[tuple[int, bytes]]:
    """Numbers and bytes of all lines, or of some; what is behind the last of them is not read."""
    numbered = enumerate(content.stream, start=1)
    if lines is None:
        return numbered
    return (each for each in itertools.islice(numbered, max(lines, default=0)) if each[0] in lines)


def _pretty_printed(path: Path, line: int) -> Fault:
    advice = f"{_ADVICE}, or one array of all; if a key of it holds the rows, write that list alone into the file"
    return Fault(FILE, f"{path}:{line}: not JSON lines: an object that goes on over several lines; {advice}")
