"""The C library's heap."""

from __future__ import annotations

import ctypes
import os

LARGE = 1 << 20
"""Bytes of a block that is asked of the system and given back to it."""

M_MMAP_THRESHOLD = -3
"""As glibc's malloc.h numbers it."""


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
