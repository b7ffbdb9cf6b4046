"""The largest micro-batch that fits into a device's memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

from glm_lightning.estimate.memory import Memory, Network
from glm_lightning.estimate.tracing import Shape, Trace, extended
from glm_lightning.methods.base import SHARDING
from glm_lightning.strategies.zero import BUCKET

_FLOAT32 = 4  # bytes

MOST_ROWS = 4096
"""Rows above which nobody asks whether they fit."""


@dataclass(frozen=True, slots=True)
class Fit:
    """How many rows of one length a device holds at once, and what they take; what one takes where none fits."""

    rows: int
    memory: Memory


def fit(network: Network, *, length: int, supervised: float, capacity: int, accumulates: bool) -> Fit:
    """The most rows of ``length`` positions that fit into ``capacity`` bytes, a share ``supervised`` of them learned.

    Traced with one row and with two: each further row takes the same in each stage. (Where one row's logits are less
    than a chunk of the loss they grow more slowly later, and some more rows would fit.)
    """

    def traced(rows: int) -> Trace:
        shape = Shape(rows, length, max(1, round(rows * length * supervised)))
        return network.trace(shape, accumulates=accumulates)

    one, two = traced(1), traced(2)
    room = capacity - network.weights
    if max(one.peaks.values()) > room:
        return Fit(0, network.of(one))
    more = ((room - most) // (two.peaks[stage] - most) for stage, most in one.peaks.items() if two.peaks[stage] > most)
    rows = 1 + min(MOST_ROWS - 1, *more)
    return Fit(rows, network.of(extended(one, two, more=rows - 1)))


def on_devices(memory: Memory, *, strategy: str, devices: int) -> int:
    """Peak in bytes on each of several devices.

    DDP keeps a copy of the gradients for its exchange; sharding strategies spread weights, gradients and optimizer
    states over the devices (Rajbhandari et al. 2020, arXiv:1910.02054). Of weights that are put together ZeRO-2 keeps
    all, ZeRO-3 the last unit (embeddings and output layer), the layer that runs and the one that is fetched meanwhile.
    DeepSpeed's engine has gradients on their way besides; its ZeRO-3 copies what is put together out of buffers that it
    comes in, its ZeRO-2 has whole weights and a copy of what is trained.
    """
    if devices > 1 and strategy == "deepspeed_zero2":
        spread = memory.gradients + memory.optimizer
        copied = _FLOAT32 * memory.trained
        return memory.peak - spread + math.ceil((spread + copied) / devices) + _on_their_way(memory)
    if devices > 1 and strategy in SHARDING:
        *layers, rest = memory.units
        together = rest + (sum(layers) if strategy == "fsdp_zero2" else 2 * max(layers))
        sent = _on_their_way(memory) + together if strategy == "deepspeed" else 0
        return memory.peak - memory.held + math.ceil(memory.held / devices) + together + sent
    return memory.peak + (memory.gradients if devices > 1 else 0)


def _on_their_way(memory: Memory) -> int:
    return _FLOAT32 * min(memory.trained, BUCKET)
