"""What the C library keeps of freed memory."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest

from glm_lightning.training import heap

FREE = """
import ctypes, os, sys
from pathlib import Path
from glm_lightning.training import heap

if sys.argv[1] == "set":
    assert heap.give_back_large_blocks()
    assert os.environ["MALLOC_MMAP_THRESHOLD_"] == str(heap.LARGE)  # of processes that this one starts
    assert not heap.give_back_large_blocks()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def blocks(size, count):
    made = [libc.malloc(size) for _ in range(count)]
    for each in made:
        ctypes.memset(each, 1, size)
    return made

libc.free(blocks(24 << 20, 1)[0])  # glibc's own threshold grows to this, if it may
before = resident()
large = blocks(8 << 20, 16)
pin = blocks(900 << 10, 4)  # lie on top of the heap, and keep it from shrinking
for each in large:
    libc.free(each)
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's heap")
@pytest.mark.parametrize("how", ["set", "unset"])
def test_freed_blocks_go_back_to_the_system(how: str) -> None:
    """And without the call they do not, or there would be nothing to test."""
    bare = {key: value for key, value in os.environ.items() if key not in ("MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")}
    command = [sys.executable, "-c", FREE, how]
    kept = int(subprocess.run(command, env=bare, capture_output=True, check=True, encoding="utf-8").stdout)
    assert kept < 16 << 20 if how == "set" else kept > 64 << 20


@pytest.mark.parametrize("free", ["much", "little"])
def test_only_a_run_that_may_not_fit_has_them_given_back(train, monkeypatch, capsys, free: str) -> None:
    calls: list[bool] = []
    monkeypatch.setattr(heap, "give_back_large_blocks", lambda: calls.append(True) or True)
    if free == "little":
        memory = SimpleNamespace(total=psutil.virtual_memory().total, available=1 << 20)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    train("run")
    assert len(calls) == (free == "little")
    assert ("memory is short" in capsys.readouterr().out) == (free == "little")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's heap")
def test_a_trimmed_heap_has_no_free_pages() -> None:
    bare = {key: value for key, value in os.environ.items() if key not in ("MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")}
    command = [sys.executable, "-c", f"{FREE}heap.trim()\nprint(resident() - before)", "unset"]
    kept, left = subprocess.run(command, env=bare, capture_output=True, check=True, encoding="utf-8").stdout.split()
    assert int(kept) > 64 << 20
    assert int(left) < 16 << 20


def test_it_is_trimmed_between_steps_and_not_too_often(train, monkeypatch) -> None:
    """Six steps of two micro-batches."""
    trimmed: list[int] = []
    monkeypatch.setattr(heap, "trim", lambda: trimmed.append(1))
    train("seldom")
    assert not trimmed
    monkeypatch.setattr(heap, "INTERVAL", 0.0)
    train("often", "trainer.accumulate_grad_batches=2")
    assert len(trimmed) == 6
