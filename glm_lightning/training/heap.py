"""The C library's heap."""

from __future__ import annotations

import ctypes
import os

LARGE = 1 << 20
"""Bytes of a block that is asked of the system and given back to it."""

M_MMAP_THRESHOLD = -3
"""As glibc's malloc.h numbers it."""


def give_back_large_blocks() -> bool:
    """Have glibc give every freed block of `LARGE` bytes back to the system; returns whether it will.

    Left to itself its threshold grows to 32 MiB with the blocks that a network frees, and below it the heap of a run on
    a CPU keeps 10 to 40 % more than its tensors ever take. Speed did not change measurably. A user's own
    ``MALLOC_MMAP_THRESHOLD_`` stands; other C libraries have no such call.
    """
    if "MALLOC_MMAP_THRESHOLD_" in os.environ or "mmap_threshold" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc; TypeError: Windows
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGE))
