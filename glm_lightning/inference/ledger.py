"""Answers in a file as they come: what a process that was killed has answered is not asked again."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Self, final

from glm_lightning.files import lock
from glm_lightning.types import UserError


class Reply(NamedTuple):
    """All that was generated for a row as text, whether the model ended it itself, and its number of tokens."""

    text: str
    finished: bool
    num_tokens: int


@final
class Ledger:
    """Replies by the number of their row.

    A file of JSON lines: the first names what all replies depend on, each other one holds a batch. A line is written at
    once and flushed to the disk; half a line, from a process that was killed, counts for nothing.
    """

    def __init__(self, path: Path, replies: dict[int, Reply]) -> None:
        self._path = path
        self.replies = replies
        """What is known, at the start what was found in the file."""

    @classmethod
    @contextlib.contextmanager
    def opened(cls, path: Path, *, key: str) -> Iterator[Self]:
        """The ledger in ``path``, which is begun where there is none; no other process can open it meanwhile.

        Raises:
            UserError: it was begun with another ``key``, or another process has opened it.
        """
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(lock(path, timeout=0))
            except TimeoutError:
                raise UserError(f"{path}: another process is writing answers there; wait for its end") from None
            ledger = cls(path, cls._found(path, key))
            yield ledger

    @classmethod
    def _found(cls, path: Path, key: str) -> dict[int, Reply]:
        header, content = _line({"key": key}), path.read_bytes()
        if header.startswith(content):  # empty, or torn in its first line
            os.truncate(path, 0)
            _append(path, header)
            return {}
        if not content.startswith(header):
            raise UserError(
                f"{path}: was begun with another model, other rows or other settings; name another file, or remove "
                "this one to begin anew"
            )
        whole = content[: content.rindex(b"\n") + 1]
        os.truncate(path, len(whole))
        batches = map(json.loads, whole[len(header) :].splitlines())
        return {int(row): Reply(*reply) for batch in batches for row, reply in batch["replies"].items()}

    def add(self, replies: Mapping[int, Reply]) -> None:
        """Keep the replies of a batch."""
        _append(self._path, _line({"replies": replies}))
        self.replies |= replies


def _line(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8") + b"\n"


def _append(path: Path, line: bytes) -> None:
    with path.open("ab") as stream:
        stream.write(line)
        stream.flush()
        os.fsync(stream.fileno())
