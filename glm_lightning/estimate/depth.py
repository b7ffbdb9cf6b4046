"""What a deep network takes, from a shallow one: layers that are alike take alike."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel

from glm_lightning.estimate.tracing import Stage, Trace, extended
from glm_lightning.methods import layers

FEW = 2
"""Layers that are left of those that are alike: the first and the last of them."""


def deep(network: nn.Module, trace: Callable[[], Trace]) -> Trace:
    """What ``trace`` gives on all of ``network``, from what it gives with few of its layers.

    Of the longest run of layers that are alike, two and then three are left: every number grows by the same with each
    further layer, and so does the most that is alive in each stage, if the backward pass of each layer is a stage. The
    most of all need not: it may be in the output layer of a shallow network, and in the last layers of a deep one.
    """
    blocks = layers.blocks(cast(PreTrainedModel, network))
    first, stop = _alike(blocks)
    count = stop - first
    if count <= FEW + 1:
        return trace()
    traces = []
    for kept in (FEW, FEW + 1):
        with _only(blocks, [*range(first + kept - 1), *range(stop - 1, len(blocks))]):
            traces.append(_by_place(trace(), first=first, count=kept, num_layers=len(blocks)))
    return extended(*traces, more=count - FEW)


def _alike(blocks: nn.ModuleList) -> tuple[int, int]:
    """The longest run of layers that are alike, as first and stop."""
    kinds = [_kind(block) for block in blocks]
    best, first = (0, 0), 0
    for place in range(1, len(kinds) + 1):
        if place == len(kinds) or kinds[place] != kinds[first]:
            best = max(best, (first, place), key=lambda run: run[1] - run[0])
            first = place
    return best


def _kind(block: nn.Module) -> list[Any]:
    return [
        (name, tensor.shape, tensor.dtype, tensor.requires_grad)
        for name, tensor in (*block.named_parameters(), *block.named_buffers())
    ]


@contextlib.contextmanager
def _only(blocks: nn.ModuleList, kept: list[int]) -> Iterator[None]:
    """Leave only some of ``blocks`` while the block runs."""
    all_of_them = list(blocks)
    del blocks[:]
    blocks.extend(all_of_them[place] for place in kept)
    try:
        yield
    finally:
        del blocks[:]
        blocks.extend(all_of_them)


def _by_place(trace: Trace, *, first: int, count: int, num_layers: int) -> Trace:
    """Layers by their numbers from the end (-1 the last) behind the first of those that are alike.

    Those in the middle are left out: what they take lies between what the first and the last take.
    """

    def place(stage: Stage) -> Stage | None:
        if not isinstance(stage, int) or stage <= first:
            return stage
        return None if stage < first + count - 1 else stage - num_layers

    return Trace(
        gradients=trace.gradients,
        optimizer=trace.optimizer,
        kept=trace.kept,
        peaks={name: most for stage, most in trace.peaks.items() if (name := place(stage)) is not None},
        flops=trace.flops,
    )
