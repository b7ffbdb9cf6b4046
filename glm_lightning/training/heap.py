"""The C library's heap."""

from __future__ import annotations

import ctypes
import os

LARGE = 1 << 20
"""Bytes of a block that is asked of the system and given back to it."""

M_MMAP_THRESHOLD = -3
"""As glibc's malloc.h numbers it."""


def give_back_large_blocks() -> None:
    """Have glibc give every freed block of `LARGE` bytes back to the system, in the whole process.

    Left to itself its threshold grows to 32 MiB with the blocks that a network frees, and the heap of a run on a CPU
    keeps more than its tensors ever take, which no estimate can foresee. A network of 135 M parameters is as fast
    either way; one of a few million loses a quarter of its speed, so it is not for those. A user's own
    ``MALLOC_MMAP_THRESHOLD_`` stands; other C libraries have no such call.
    """
    if "MALLOC_MMAP_THRESHOLD_" in os.environ or "mmap_threshold" in os.environ.get("GLIBC_TUNABLES", ""):
        return
    try:
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE)
    except (AttributeError, OSError, TypeError):  # not glibc; TypeError: Windows
        return
