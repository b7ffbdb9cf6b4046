"""Threads beside the engine's."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor


def passing() -> ThreadPoolExecutor:
    """One thread for networks to be loaded or tried in, which is gone when the ``with`` block around it ends.

    OpenMP keeps helpers for every thread that has computed. Once it has more threads than there are cores, its helpers
    sleep between two operations instead of waiting awake, those of the engine, too: on two cores a token of a network
    of 135 M parameters took 31 ms instead of 26.
    """
    return ThreadPoolExecutor(1, thread_name_prefix="passing")
