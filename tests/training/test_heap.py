"""What is kept of freed memory, and of kernels."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

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


def test_it_is_trimmed_when_the_process_has_outgrown_its_need(monkeypatch) -> None:
    """Two micro-batches a step. What is needed is what a step takes on a trimmed heap, and the most of these."""
    trimmed: list[int] = []
    monkeypatch.setattr(heap, "trim", lambda: trimmed.append(1))
    trainer: Any = SimpleNamespace(accumulate_grad_batches=2)
    callback = heap.Trimmed()

    def trims_behind(resident: int) -> bool:
        before = len(trimmed)
        monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=9999)))
        callback.on_train_batch_end(trainer, None, None, None, 0)  # amid a step
        assert len(trimmed) == before
        monkeypatch.setattr(
            psutil, "Process", lambda: SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=resident))
        )
        callback.on_train_batch_end(trainer, None, None, None, 1)
        return len(trimmed) > before

    callback.on_train_start(trainer, None)
    assert len(trimmed) == 1
    assert not trims_behind(1000)  # needed
    assert not trims_behind(1190)
    assert trims_behind(1210)
    assert not trims_behind(1100)  # the new need
    assert not trims_behind(1310)
    assert trims_behind(1330)
    assert not trims_behind(900)  # of a small step, which says nothing
    assert not trims_behind(1310)


def test_a_run_trims_its_heap(train, monkeypatch) -> None:
    trimmed: list[int] = []
    monkeypatch.setattr(heap, "trim", lambda: trimmed.append(1))
    monkeypatch.setattr(heap, "SLACK", -1.0)
    train("run", "trainer.accumulate_grad_batches=2")
    assert len(trimmed) == 1 + 3  # at the start, and behind every second of six steps


SHAPES = """
import sys
import psutil, torch
from glm_lightning.training import heap

if sys.argv[1] != "0":
    heap.keep_fewer_kernels(int(sys.argv[1]))
before = psutil.Process().memory_info().rss
for number in range(900):
    states = torch.ones(2, number % 90 + 17, number // 90 + 17, dtype=torch.bfloat16)
    torch.bmm(states, states.mT)
print(psutil.Process().memory_info().rss - before)
"""


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="oneDNN has no bfloat16 on this machine")
def test_kernels_of_shapes_that_do_not_come_again_are_given_up() -> None:
    bare = {key: value for key, value in os.environ.items() if not key.endswith("_CACHE_CAPACITY")}
    grown = {
        tokens: int(subprocess.check_output([sys.executable, "-c", SHAPES, str(tokens)], env=bare, encoding="utf-8"))
        for tokens in (0, 2048)
    }
    assert grown[2048] < 0.7 * grown[0]


@pytest.mark.parametrize(("tokens", "kept"), [(512, 256), (2048, 256), (4096, 512), (1 << 20, 1024)])
def test_larger_micro_batches_keep_more_of_them(monkeypatch, tokens: int, kept: int) -> None:
    names = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
    for name in names:
        monkeypatch.setenv(name, "")  # whatever is set is undone at the end
        monkeypatch.delenv(name)
    heap.keep_fewer_kernels(tokens)
    assert [os.environ[name] for name in names] == [str(kept)] * 2
    heap.keep_fewer_kernels(1 << 14)
    assert [os.environ[name] for name in names] == [str(kept)] * 2  # a user's own
