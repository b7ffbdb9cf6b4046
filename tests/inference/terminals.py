"""A program in a terminal of its own, as a user would have it."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Self

from tiny_runs import ROOT


class Terminal:
    """Runs Python code in a pseudo-terminal that is its controlling one: Ctrl-C is typed, not sent as a signal."""

    def __init__(self, code: str, *, cwd: Path) -> None:
        self._own, theirs = pty.openpty()
        environment = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "LC_ALL": "C.UTF-8"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=theirs, stdout=theirs, stderr=theirs, cwd=cwd, env=environment,
            start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(theirs)
        self.shown = ""
        self._read = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._own)

    def type(self, text: str) -> None:
        """Type some keys."""
        os.write(self._own, text.encode("utf-8"))

    def interrupt(self, text: str, *, times: int = 20) -> None:
        """Type Ctrl-C until ``text`` is shown, as a user does: one that comes just before a line is read is lost."""
        for left in reversed(range(times)):
            self.type("\x03")
            try:
                self.until(text, seconds=6)
                return
            except AssertionError:
                if not left:
                    raise

    def until_more(self, *, seconds: float = 120) -> None:
        """Wait until anything is shown behind what was waited for before."""
        deadline = time.monotonic() + seconds
        while len(self.shown) == self._read:
            assert time.monotonic() < deadline, "nothing is shown"
            self._take(deadline)

    def until(self, text: str, *, seconds: float = 120) -> str:
        """Wait until ``text`` is shown behind what was waited for before; what was shown meanwhile."""
        deadline = time.monotonic() + seconds
        while text not in self.shown[self._read :]:
            assert time.monotonic() < deadline, f"{text!r} is not in {self.shown[self._read :]!r}"
            self._take(deadline)
        end = self.shown.index(text, self._read) + len(text)
        found, self._read = self.shown[self._read : end], end
        return found

    def end(self, *, seconds: float = 30) -> int:
        """Wait for the program's end; its exit code."""
        return self.process.wait(timeout=seconds)

    def _take(self, deadline: float) -> None:
        ready, _, _ = select.select([self._own], [], [], max(0, deadline - time.monotonic()))
        if ready:
            self.shown += os.read(self._own, 1 << 16).decode("utf-8", "replace")
