"""The C library's heap."""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from typing import Any, final

from lightning.pytorch import Callback, LightningModule, Trainer

LARGE = 1 << 20
"""Bytes of a block that is asked of the system and given back to it."""

M_MMAP_THRESHOLD = -3
"""As glibc's malloc.h numbers it."""

INTERVAL = 5.0
"""Seconds between two times that a heap is trimmed: pages that come back must be made anew."""

KEPT = 0.4
"""Share of a run's tensors that the heap was seen to keep beyond them at most, left to itself."""


def give_back_large_blocks() -> bool:
    """Have glibc give every freed block of `LARGE` bytes back to the system, in this process and those it starts.

    Left to itself its threshold grows to 32 MiB with the blocks that a network frees, and the heap of a run on a CPU
    keeps more than its tensors ever take. Given back, the pages of every block are made anew: that cost nothing on one
    machine and half of the speed on another, so it is for runs that would not fit otherwise.

    A user's own ``MALLOC_MMAP_THRESHOLD_`` stands; other C libraries have no such call. Returns whether it was made.
    """
    if "MALLOC_MMAP_THRESHOLD_" in os.environ or "mmap_threshold" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    try:
        done = bool(ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE))
    except (AttributeError, OSError, TypeError):  # not glibc; TypeError: Windows
        return False
    if done:
        os.environ["MALLOC_MMAP_THRESHOLD_"] = str(LARGE)
    return done


def trim() -> None:
    """Have glibc give the pages that are free back to the system; other C libraries have no such call."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


@final
class Trimmed(Callback):
    """Trims the heap behind an optimizer step, once in `INTERVAL` seconds at most.

    Micro-batches of ever other lengths leave holes that no later block fits into: untrimmed, the heap grows by them for
    as long as new lengths come.
    """

    def __init__(self) -> None:
        self._last = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Trim, if it is time."""
        is_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if is_step and time.monotonic() - self._last >= INTERVAL:
            trim()
            self._last = time.monotonic()
