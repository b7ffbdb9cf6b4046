"""A JSON array of objects, element by element, of which only the element at hand is in memory."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, final

from glm_lightning.data.judging.kinds import FILE, Fault
from glm_lightning.data.reading.base import Problems, Row, RowError, no_rows, short
from glm_lightning.data.reading.decoding import undecodable
from glm_lightning.data.reading.json_values import check_row, decoder, fault, reason
from glm_lightning.data.reading.opening import Content

_BLOCK = 1 << 20
_SPACE = re.compile(r"[ \t\r\n]*")
_LONGEST_TAIL = 4  # so much of a number may look like its end: 12 of 12.5 or of 12e+3
_LONGEST_WORD = 16  # an error this near to the window's end may come from a word or an escape that goes on behind it


def rows(content: Content, path: Path, problems: Problems) -> Iterator[Row]:
    """The rows, each with the line it starts on. They end at the first fault of the array."""
    window, number = _Window(content.stream), 0
    try:
        window.begin()
        while window.next() != "]":
            number += 1
            line, value = window.line, window.value()
            try:
                check_row(value)
            except RowError as error:
                problems.add(path, fault(error, f"{path}:{line}: {error}: {short(str(value))}; give objects"))
            else:
                yield Row(value, line, content.done)
            window.separator()
        if trailing := window.trailing():
            what = f"more than one JSON value: {short(trailing)} behind the array's end; remove it"
            problems.add(path, Fault(FILE, f"{path}:{window.line}: {what}"))
    except UnicodeDecodeError as error:
        problems.add(path, undecodable(path, window.line_of(error), error, kind=FILE))
    except (ValueError, RecursionError) as error:
        problems.add(path, window.fault(path, error))
    else:
        if not number:
            problems.add(path, no_rows(path, "an empty array; give an array of objects"))


@final
class _Window:
    """The part of an array that is being decoded, and the place of its beginning in the file."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._decode = decoder().raw_decode
        self._text, self._position = "", 0
        self._ended = False
        self._before, self._column = 0, 0  # characters before the window, in the file and in its line
        self._line, self._counted = 1, 0  # the line at the character _counted of the window

    @property
    def line(self) -> int:
        """The line of what comes next."""
        self._line += self._text.count("\n", self._counted, self._position)
        self._counted = self._position
        return self._line

    def begin(self) -> None:
        """Step behind the opening bracket."""
        self._expect("[", "Expecting '['")

    def next(self) -> str:
        """The next character that is no space; empty at the end."""
        while (end := self._space()) == len(self._text) and not self._ended:
            self._position = end
            self._more()
        self._position = end
        return self._text[end : end + 1]

    def value(self) -> Any:
        """Decode an element and step behind it."""
        while True:
            try:
                value, end = self._decode(self._text, self._position)
            except json.JSONDecodeError as error:
                if self._ended or not self._may_go_on(error):
                    raise
            else:
                if end + _LONGEST_TAIL <= len(self._text) or self._ended:
                    self._position = end
                    return value
            self._more()

    def separator(self) -> None:
        """Step to the next element, or to the closing bracket."""
        if self.next() == "]":
            return
        self._expect(",", "Expecting ',' or ']'")
        if self.next() == "]":
            raise json.JSONDecodeError("A comma before the closing bracket", self._text, self._position)

    def trailing(self) -> str:
        """What stands behind the closing bracket."""
        self._position += 1
        return self._text[self._position :] if self.next() else ""

    def line_of(self, error: UnicodeDecodeError) -> int:
        """The line of bytes that could not be decoded, which follow the window."""
        return self.line + self._text.count("\n", self._position) + error.object.count(b"\n", 0, error.start)

    def fault(self, path: Path, error: ValueError | RecursionError) -> Fault:
        """What is said of an error, with line, column and character."""
        text = self._text
        where = error.pos if isinstance(error, json.JSONDecodeError) else self._position
        line = self.line + text.count("\n", self._position, where) - text.count("\n", where, self._position)
        newline = text.rfind("\n", 0, where)
        column = where - newline if newline >= 0 else self._column + where + 1
        why = reason(error, with_place=False)
        # strings hold no raw newlines, so one without an end reaches to the end of the file, or is reported otherwise
        cut = where >= len(text.rstrip()) or why.endswith("Unterminated string starting")
        ended = "; the file ends in the middle of the array: is it cut off?" if cut else ""
        near = short(text[max(0, where - 20) : where + 20])
        place = f"{path}:{line}:{column} (character {self._before + where + 1})"
        return Fault(FILE, f"{place}: {why}, near {near}{ended}; correct the file")

    def _expect(self, character: str, message: str) -> None:
        if self.next() != character:
            raise json.JSONDecodeError(message, self._text, self._position)
        self._position += 1

    def _may_go_on(self, error: json.JSONDecodeError) -> bool:
        return error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - _LONGEST_WORD

    def _space(self) -> int:
        found = _SPACE.match(self._text, self._position)
        assert found is not None
        return found.end()

    def _more(self) -> None:
        """Drop what is behind, and read at least as much as is left."""
        start = self._position
        self._line, self._counted = self.line, 0
        newline = self._text.rfind("\n", 0, start)
        self._column = start - newline - 1 if newline >= 0 else self._column + start
        self._before += start
        self._text, self._position = self._text[start:], 0
        block = self._stream.read(max(_BLOCK, len(self._text)))
        self._ended = not block
        self._text += self._utf8.decode(block, final=self._ended)
