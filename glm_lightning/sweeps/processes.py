"""A job's process: started in a group of its own, its output kept, ended with all that it has started."""

from __future__ import annotations

import codecs
import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, final

GRACE_SECONDS = 30.0
"""Time that a stopped job has to write its checkpoint."""


@final
class Process:
    """A command that runs; what it prints goes to ``log`` and, where it is ``shown``, to our own output."""

    def __init__(self, command: Sequence[str], log: Path, *, environment: dict[str, str], shown: bool) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"} | environment,
            process_group=0,  # so that the ranks that the job has started can be stopped with it
        )
        assert self._process.stdout is not None
        self._reader = threading.Thread(target=_copy, args=(self._process.stdout, log, shown))
        self._reader.start()

    def ended(self) -> int | None:
        """The exit code, None while it runs; ranks that outlived a job that has ended are killed."""
        code = self._process.poll()
        if code is not None:
            self._close()
        return code

    def stop(self, signum: signal.Signals = signal.SIGINT) -> int:
        """Ask it to end, wait for the time that a checkpoint takes, then kill it; the exit code."""
        self.ask(signum)
        with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
            self._process.wait(GRACE_SECONDS)
        self._signal_group(signal.SIGKILL)
        code = self._process.wait()
        self._close()
        return code

    def ask(self, signum: signal.Signals) -> None:
        """Send a signal to the job and all that it has started."""
        self._signal_group(signum)

    def _close(self) -> None:
        self._signal_group(signal.SIGKILL)  # ranks that outlived the job would hold its memory and this pipe
        self._reader.join()

    def _signal_group(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


@contextlib.contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Raise KeyboardInterrupt for SIGTERM and SIGHUP, too. Who ignores a signal (nohup) goes on ignoring it."""
    heeded = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, signal.default_int_handler) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _copy(stream: IO[bytes], log: Path, shown: bool) -> None:
    """Show output as it comes (a progress bar has no line ends) and keep it, behind what a run before has left."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    with stream, log.open("ab") as kept:
        while chunk := os.read(stream.fileno(), 1 << 16):
            kept.write(chunk)
            kept.flush()
            if shown:
                sys.stdout.write(decoder.decode(chunk))
                sys.stdout.flush()
