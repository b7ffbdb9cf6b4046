"""Threads beside the engine's."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def apart(function: Callable[..., T], *args: object) -> Future[T]:
    """Load or try a network in a thread that is gone afterwards; who gives it up need not wait for it.

    OpenMP keeps helpers for every thread that has computed. Once it has more threads than there are cores, its helpers
    sleep between two operations instead of waiting awake, those of the engine, too: on two cores a token of a network
    of 135 M parameters took 31 ms instead of 26.
    """
    thread = ThreadPoolExecutor(1, thread_name_prefix="apart")
    try:
        return thread.submit(function, *args)
    finally:
        thread.shutdown(wait=False)
