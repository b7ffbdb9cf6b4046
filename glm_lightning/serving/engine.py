"""One thread that makes the tokens of all answers, row by row in batches."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast, final

import torch

from glm_lightning.inference.batch import Batch, Prefill, Speaker
from glm_lightning.inference.rows import Row

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much is done at once.

    Args:
        max_rows: answers that are generated together.
        max_waiting: answers that wait for a place.
        max_tokens: places in the cache, over all answers: rows times the longest of them, prompt and answer.
        piece: tokens of prompts that are read between two tokens of the answers that run.
    """

    max_rows: int = 64
    max_waiting: int = 256
    max_tokens: int = 1 << 20
    piece: int = 512


class BusyError(Exception):
    """There is no place for another answer now; ``seconds`` is when to try again, by what answers took lately."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"all places are taken; try again in {seconds} s")
        self.seconds = seconds


class ClosedError(Exception):
    """The engine is shutting down."""


class _Waiting(NamedTuple):
    speaker: Speaker
    row: Row


@dataclass(slots=True)
class _Reading:
    """Rows whose prompts are being read."""

    speaker: Speaker
    rows: list[Row]
    prefill: Prefill | None = None


@final
class Engine:
    """Answers rows of any number of speakers; rows of one speaker share its batch.

    Between two tokens of the rows that run, prompts are read: those of as many rows as fit, in the order in which they
    were submitted, a long prompt piece by piece. So nobody's answer stands still for longer than a piece takes, and a
    new one begins as soon as there is a place. An answer is taken in only if the cache has room for its longest form;
    nothing that runs is ever thrown out.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._waiting: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._batches: dict[Speaker, Batch] = {}
        self._reading: _Reading | None = None
        self._is_closed = False
        self._row_seconds = 1.0
        self._began: dict[Row, float] = {}
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def close(self) -> None:
        """Take no more rows, and return once those that are here have ended."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def submit(self, speaker: Speaker, rows: Sequence[Row]) -> None:
        """Answer ``rows``; their listeners hear of it.

        Raises:
            BusyError: too many answers wait already.
            ClosedError: the engine is shutting down.
        """
        with self._changed:
            if self._is_closed:
                raise ClosedError
            there = self.num_running + len(self._waiting)
            if there + len(rows) > self.limits.max_rows + self.limits.max_waiting:
                raise BusyError(self._seconds_to_wait())
            self._waiting.extend(_Waiting(speaker, row) for row in rows)
            self._changed.notify()

    def fits(self, speaker: Speaker, rows: Sequence[Row]) -> bool:
        """Whether the cache could hold these rows if it held no others."""
        return self._cost(speaker, rows) <= self.limits.max_tokens

    @property
    def num_running(self) -> int:
        """Answers that have a place."""
        reading = self._reading
        there = sum(len(batch.rows) for batch in list(self._batches.values()))
        return there + (len(reading.rows) if reading else 0)

    @property
    def num_waiting(self) -> int:
        """Answers that have none yet."""
        return len(self._waiting)

    @property
    def num_bytes(self) -> int:
        """Memory of keys and values."""
        return sum(batch.num_bytes for batch in list(self._batches.values()))

    @property
    def is_alive(self) -> bool:
        """Whether rows that are submitted will be answered."""
        return self._thread.is_alive() and not self._is_closed

    @torch.inference_mode()  # each operation costs less than under no_grad
    def _run(self) -> None:
        try:
            while self._await_work():
                self._read()
                for speaker, batch in list(self._batches.items()):
                    self._step(speaker, batch)
        except BaseException:
            _LOG.critical("the engine has stopped", exc_info=True)
            self._is_closed = True
            raise

    def _await_work(self) -> bool:
        """Sleep while there is nothing to do; False once there never will be."""
        with self._changed:
            while not (self._waiting or self._batches or self._reading or self._is_closed):
                self._changed.wait()
            return bool(self._waiting or self._batches or self._reading)

    def _read(self) -> None:
        """A piece of the prompts that are being read; rows whose prompts are read join their batch."""
        if self._reading is None and (chosen := self._admitted()):
            speaker = chosen[0].speaker
            rows = [each.row for each in chosen]
            self._began.update(dict.fromkeys(rows, time.monotonic()))
            self._reading = _Reading(speaker, rows)
        if self._reading is None:
            return
        reading = self._reading
        try:
            reading.prefill = reading.prefill or Prefill(reading.speaker, reading.rows, piece=self.limits.piece)
            logits = reading.prefill.step()
        except Exception as error:
            self._reading = None
            self._fail(reading.rows, error)
            return
        if logits is not None:
            self._reading = None
            batch = self._batches.setdefault(reading.speaker, Batch(reading.speaker))
            self._guard(
                reading.speaker, batch, lambda: batch.join(cast(Prefill, reading.prefill), logits), reading.rows
            )

    def _step(self, speaker: Speaker, batch: Batch) -> None:
        """A token for each row of a batch."""
        self._guard(speaker, batch, batch.step)

    def _guard(self, speaker: Speaker, batch: Batch, act: Callable[[], None], joining: Sequence[Row] = ()) -> None:
        """Let a batch act. One that fails, whose cache cannot be trusted then, is given up, and so is an empty one."""
        there = {*batch.rows, *joining}
        try:
            act()
        except Exception as error:
            del self._batches[speaker]
            self._fail(there, error)
            return
        self._note(there.difference(batch.rows))
        if not batch.rows:
            del self._batches[speaker]

    def _fail(self, rows: Collection[Row], error: Exception) -> None:
        _LOG.error("%d answers failed", len(rows), exc_info=error)
        self._note(rows)
        for row in rows:
            row.listener.fail(error)

    def _note(self, ended: Iterable[Row]) -> None:
        """Learn how long answers take."""
        now = time.monotonic()
        for row in ended:
            self._row_seconds += 0.1 * (now - self._began.pop(row, now) - self._row_seconds)

    def _admitted(self) -> list[_Waiting]:
        """The rows whose prompts are read next: the first in the queue, and those behind it that fit beside it."""
        with self._changed:
            self._waiting = deque(each for each in self._waiting if not each.row.is_gone)
            chosen: list[_Waiting] = []
            for each in self._waiting:
                if chosen and each.speaker is not chosen[0].speaker:
                    continue
                if not self._may_join(each.speaker, [*(other.row for other in chosen), each.row]):
                    break
                chosen.append(each)
            taken = {each.row for each in chosen}
            self._waiting = deque(each for each in self._waiting if each.row not in taken)
            return chosen

    def _may_join(self, speaker: Speaker, rows: Sequence[Row]) -> bool:
        if self.num_running + len(rows) > self.limits.max_rows:
            return False
        longest = max(len(row.prompt_ids) for row in rows) + speaker.num_soft
        if len(rows) > 1 and len(rows) * longest > self.limits.piece:
            return False
        batches = {each: batch.rows for each, batch in self._batches.items()}
        batches[speaker] = [*batches.get(speaker, []), *rows]
        return sum(self._cost(each, own) for each, own in batches.items()) <= self.limits.max_tokens

    def _cost(self, speaker: Speaker, rows: Sequence[Row]) -> int:
        """Places in the cache that a batch of these rows may come to."""
        return len(rows) * (max((row.num_tokens for row in rows), default=0) + speaker.num_soft)

    def _seconds_to_wait(self) -> int:
        """Until a place should be free, by how long answers took lately."""
        rounds = (len(self._waiting) + 1) / self.limits.max_rows
        return max(1, min(60, math.ceil(rounds * self._row_seconds)))
