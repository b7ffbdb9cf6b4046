"""A function over many chunks in several processes, results in the order of the chunks."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from glm_lightning.types import UserError

T = TypeVar("T")
R = TypeVar("R")

_WORTH_IT = 4 << 20  # bytes of sources; below, starting processes costs more than it gains
_MOST = 16  # one process reads for all, so more would wait for it
_WATCH_SECONDS = 0.5
_GROUP = Path("/sys/fs/cgroup")
_function: Callable[[Any], Any]


def choose(processes: int | None, *, size: int) -> int:
    """How many processes to take for ``size`` bytes: the given number, or as many as there are cores for us."""
    if processes is not None:
        return processes
    if size < _WORTH_IT or sys.platform != "linux":
        return 1
    return max(1, min(len(os.sched_getaffinity(0)), _quota(), _MOST))


def _quota() -> int:
    """Processors that a container may use, by its control group (version 2, then 1); as many as we take if it is free.

    Python's own `os.process_cpu_count` knows of affinity alone.
    """
    for files in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            quota, period = " ".join((_GROUP / file).read_text(encoding="ascii") for file in files).split()
            return max(1, int(quota) // int(period)) if int(quota) > 0 else _MOST
        except (OSError, ValueError):  # no such version, or "max": no limit
            continue
    return _MOST


def ordered(function: Callable[[T], R], items: Iterable[T], *, processes: int) -> Iterator[tuple[T, R]]:
    """Each item with the result of ``function``, in order; a few items are held at a time.

    The processes are forked, so that nothing has to be imported or sent again. What a fork does not carry over are
    the threads of Rust libraries: tokenizers is told to do without them, and others must not be called in ``function``.

    Raises:
        UserError: one of the processes was killed.
    """
    with _collecting_by_hand():
        if processes == 1:
            yield from ((item, _collected(function(item))) for item in items)
        else:
            yield from _in_processes(function, items, processes)


def _in_processes(function: Callable[[T], R], items: Iterable[T], processes: int) -> Iterator[tuple[T, R]]:
    pending: deque[tuple[T, Future[R]]] = deque()
    pool = ProcessPoolExecutor(
        processes, mp_context=get_context("fork"), initializer=_begin, initargs=(function, os.getpid())
    )
    try:
        for item in items:
            pending.append((item, _submitted(pool, item)))
            if len(pending) > 2 * processes:
                yield _result(*pending.popleft())
        while pending:
            yield _result(*pending.popleft())
    except BrokenProcessPool:
        raise UserError(
            "data: one of the processes that encode was killed, most likely for want of memory; free some, or "
            "give fewer rows"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _collecting_by_hand() -> Iterator[None]:
    """Garbage is collected where an item is done with, and what was there before is left out of it.

    A chunk makes so many objects that live until its end that Python's collector took a third of the time.
    """
    was_enabled = gc.isenabled()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()


def _collected(result: R) -> R:
    gc.collect()
    return result


def _submitted(pool: ProcessPoolExecutor, item: Any) -> Future[Any]:
    with warnings.catch_warnings():
        # Python 3.12 and later warn of what is said above
        warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork", category=DeprecationWarning)
        return pool.submit(_call, item)


def _result(item: T, future: Future[R]) -> tuple[T, R]:
    return item, future.result()


def _begin(function: Callable[[Any], Any], parent: int) -> None:
    global _function
    _function = function
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads were not forked along
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends the others


def _end_with(parent: int) -> None:
    """End this process when the first one was killed: else it would wait for ever, and hold the cache's lock."""
    while os.getppid() == parent:
        time.sleep(_WATCH_SECONDS)
    os._exit(1)


def _call(item: Any) -> Any:
    return _collected(_function(item))
