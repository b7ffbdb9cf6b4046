"""The largest micro-batch that fits into a device's memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from glm_lightning.estimate.memory import Memory

SHALLOW, DEEPER = 3, 4
"""Layers of the two networks from which a deep one is extrapolated: each layer adds the same."""

MOST_ROWS = 4096
"""Rows above which nobody asks whether they fit."""


@dataclass(frozen=True, slots=True)
class Fit:
    """How many rows of one length a device holds, and what they take."""

    rows: int  # 0: not even one
    one_row: int  # bytes at one row
    used: int  # bytes at ``rows``, or at one row where it does not fit


def fit(peak: Callable[[int, int], int], *, num_layers: int, capacity: int) -> Fit:
    """The most rows whose peak stays within ``capacity`` bytes; ``peak(layers, rows)`` is traced on shallow networks.

    Memory is linear in layers and, between one and two rows, in rows; the extrapolation takes both as exact.
    """

    def deep(rows: int) -> float:
        if num_layers <= DEEPER:
            return peak(num_layers, rows)
        first, second = peak(SHALLOW, rows), peak(DEEPER, rows)
        return first + (num_layers - SHALLOW) * (second - first)

    one, two = deep(1), deep(2)
    a_row = max(1.0, two - one)
    rows = min(MOST_ROWS, 1 + math.floor((capacity - one) / a_row)) if one <= capacity else 0
    return Fit(rows=rows, one_row=int(one), used=int(one + (max(rows, 1) - 1) * a_row))


def on_devices(memory: Memory, *, strategy: str, devices: int) -> int:
    """Peak in bytes on each of several devices.

    DDP keeps a copy of the gradients for its exchange; sharding strategies spread weights, gradients and optimizer
    states over the devices (Rajbhandari et al. 2020, arXiv:1910.02054).
    """
    states = memory.weights + memory.gradients + memory.optimizer
    if devices > 1 and strategy.startswith(("fsdp", "deepspeed", "model_parallel")):
        return memory.peak - states + -(-states // devices)
    return memory.peak + (memory.gradients if devices > 1 else 0)
