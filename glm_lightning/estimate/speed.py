"""How fast this machine trains: a short step of two layers of a network, with random weights."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import nn

from glm_lightning.estimate.memory import AUTOCAST
from glm_lightning.types import Batch, Loss

LAYERS = 2
VOCABULARY = 1024
"""Of the network that is timed: its layers are as wide as the real ones, its vocabulary need not be."""

POSITIONS = 512
_REPEATS = 2


def seconds_a_step(
    network: nn.Module, *, loss: Callable[[nn.Module, Batch], Loss], precision: str, device: str
) -> float:
    """Seconds of one forward and backward pass over `POSITIONS` random positions, the first pass left out."""
    network.to(device)
    batch = random_batch().to(device)
    taken = []
    for _ in range(1 + _REPEATS):  # the first prepares kernels
        start = time.perf_counter()
        with torch.autocast(device, dtype=AUTOCAST.get(precision), enabled=precision in AUTOCAST):
            total = loss(network, batch).total
        total.backward()
        float(total)  # waits for a GPU
        taken.append(time.perf_counter() - start)
    return min(taken[1:])


def random_batch() -> Batch:
    """One row, of which the second half is learned."""
    ids = torch.randint(10, VOCABULARY, (1, POSITIONS), generator=torch.Generator().manual_seed(0))
    where = torch.arange(POSITIONS // 2, POSITIONS - 1)
    return Batch(ids, where, ids[0, where + 1], torch.tensor([POSITIONS]), step_tokens=len(where))
