"""JSON lines: one object a line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from glm_lightning.data.judging.kinds import FILE, Fault
from glm_lightning.data.reading.base import Problems, Row, no_rows, short
from glm_lightning.data.reading.decoding import looks_like_gbk, undecodable
from glm_lightning.data.reading.json_values import check_row, decoder, fault, reason
from glm_lightning.data.reading.opening import Content

_ADVICE = "give one whole object a line"


def rows(content: Content, path: Path, problems: Problems) -> Iterator[Row]:
    """The rows, in order. Lines end at ``\\n`` only; reading goes on behind a bad one."""
    decode, found = decoder().raw_decode, False
    for number, raw in enumerate(content.stream, start=1):
        if not raw.strip(b" \t\r\n"):
            continue
        found = True
        try:
            text = raw.decode("utf-8").strip(" \t\r\n")
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


def _pretty_printed(path: Path, line: int) -> Fault:
    advice = f"{_ADVICE}, or one array of all; if a key of it holds the rows, write that list alone into the file"
    return Fault(FILE, f"{path}:{line}: not JSON lines: an object that goes on over several lines; {advice}")
