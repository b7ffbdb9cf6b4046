"""How far a long piece of work is: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self, final

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

_QUIET_SECONDS = 2.0
_LINE_SECONDS = 15.0


def say(text: str) -> None:
    """A line on stderr, for what happens before there is a console."""
    print(text, file=sys.stderr, flush=True)


@final
class Bar:
    """Appears on stderr once the work has taken a while."""

    def __init__(self, what: str, *, total: int) -> None:
        self._what, self._total = what, max(total, 1)
        self._begun = self._said = time.monotonic()
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> Self:
        return self

    def show(self, done: int) -> None:
        """Move to ``done`` of the total."""
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, completed=done)
        elif not sys.stderr.isatty():
            if now - self._said > _LINE_SECONDS:
                self._said = now
                left = (now - self._begun) * (self._total - done) / max(done, 1)
                say(f"{self._what}: {done / self._total:.0%}, about {left:.0f} s left")
        elif now - self._begun > _QUIET_SECONDS:
            columns = TextColumn(self._what), BarColumn(), TextColumn("{task.percentage:.0f}%"), TimeRemainingColumn()
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(self._what, total=self._total)
            self._bar.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
