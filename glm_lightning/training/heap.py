"""What a process on a CPU keeps beside its tensors: freed blocks, and kernels made for a shape."""

from __future__ import annotations

import contextlib
import ctypes
import os
from typing import Any, final

import psutil
from lightning.pytorch import Callback, LightningModule, Trainer

LARGE = 1 << 20
"""Bytes of a block that is asked of the system and given back to it."""

M_MMAP_THRESHOLD = -3
"""As glibc's malloc.h numbers it."""

SLACK = 0.2
"""Share by which a process may outgrow what it was seen to need before its heap is trimmed."""

KEPT = 0.5
"""Share of a run's tensors that the heap, trimmed or not, was seen to keep beyond them at most."""

KERNELS = 256
"""Kernels of oneDNN that are kept at least: layers with LoRA take some thirty, and five for each length of a sample."""

POSITIONS_A_KERNEL = 8
"""Where micro-batches are large: samples of forty positions, each of another length, take five kernels each."""


def keep_fewer_kernels(max_tokens: int) -> None:
    """Have oneDNN keep the kernels that micro-batches of ``max_tokens`` positions need, instead of 1,024.

    It makes one for every shape in bfloat16 and keeps it, 0.5 to 1 MB each, though the lengths of packed samples hardly
    come again. A process that has multiplied before, and a user's own setting, stay as they are.
    """
    number = str(min(max(KERNELS, max_tokens // POSITIONS_A_KERNEL), 1024))
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):  # of the library, and of torch's layer on it
        os.environ.setdefault(name, number)


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
    """Trims the heap behind an optimizer step when the process takes `SLACK` more than it was seen to need.

    Micro-batches of ever other lengths leave holes that no later block fits into: untrimmed, the heap grows by them for
    as long as new lengths come. But pages that were given back are made anew, a tenth of the next micro-batch's time,
    so it is not done after each step. What is needed is what the process takes after the step that follows.
    """

    def __init__(self) -> None:
        self._needed, self._is_trimmed = 0, False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Trim what loading and first scores have left."""
        self._trim()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Trim, if there is reason to."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        resident = psutil.Process().memory_info().rss
        if self._is_trimmed:
            self._needed, self._is_trimmed = max(self._needed, resident), False
        elif resident > (1 + SLACK) * self._needed:
            self._trim()

    def _trim(self) -> None:
        trim()
        self._is_trimmed = True
