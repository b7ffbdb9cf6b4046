"""The epoch plan: which rows meet in which optimizer step, and in which micro-batch of which rank.

Sample lengths are known after encoding, so an epoch is a pure function in two cuts. `Plan.steps` makes the optimizer
steps from (lengths, seed, epoch, batch size) alone: the same whatever the hardware. `Plan.split` cuts one step
into exactly ``world_size * accumulate`` micro-batches within a token budget. Every step's number of supervised tokens
is known before it runs, so its loss is exact whatever the split, and resuming is planning again and skipping.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from glm_lightning.data.packing import first_fit, pack
from glm_lightning.types import UserError

Rows = NDArray[np.int64]


Packed = tuple[tuple[int, ...], ...]
"""Rows of a micro-batch, and the samples in each: one, unless they are packed."""


class MicroBatch(NamedTuple):
    """Rows that one rank runs at once. No rows: a filler that keeps the ranks in step and weighs nothing."""

    rows: Packed
    step_tokens: int  # supervised tokens of the whole optimizer step


@dataclass(frozen=True)
class Plan:
    """A training set's epochs.

    Args:
        lengths: (rows,) positions of each sample.
        num_supervised: (rows,) supervised tokens of each sample.
        batch_size: rows of an optimizer step, over all ranks and micro-batches.
        max_tokens: largest padded size of a micro-batch, rows times positions.
        pad_to_multiple: a micro-batch's positions are rounded up to a multiple of this: few distinct shapes.
        seed: of the order.
        group_steps: steps whose rows are sorted by length together.
        packed: positions of a row that several samples may share; None: a row holds one sample.
        world_size: number of ranks.
        accumulate: micro-batches of a rank in an optimizer step.
    """

    lengths: NDArray[np.int32]
    num_supervised: NDArray[np.int32]
    batch_size: int
    max_tokens: int
    pad_to_multiple: int
    seed: int
    group_steps: int = 1
    packed: int | None = None
    world_size: int = 1
    accumulate: int = 1

    @property
    def num_steps(self) -> int:
        """Optimizer steps of an epoch."""
        return math.ceil(len(self.lengths) / self.batch_size)

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches of an epoch on each rank."""
        return self.num_steps * self.accumulate

    def steps(self, epoch: int) -> list[Rows]:
        """The rows of each optimizer step: a seeded permutation in equal parts, so that no small rest is left.

        Rows of ``group_steps`` neighbouring steps are then exchanged so that each step has rows of like length, and
        the steps are put in random order again.
        """
        rng = np.random.default_rng([self.seed, epoch])
        steps = np.array_split(rng.permutation(len(self.lengths)), self.num_steps)
        if self.group_steps > 1:
            windows = [steps[start : start + self.group_steps] for start in range(0, len(steps), self.group_steps)]
            steps = [step for window in windows for step in self._sorted_by_length(window)]
            steps = [steps[index] for index in rng.permutation(len(steps))]
        return steps

    def _sorted_by_length(self, window: list[Rows]) -> list[Rows]:
        rows = np.concatenate(window)
        ordered = rows[np.argsort(self.lengths[rows], kind="stable")]
        return np.split(ordered, np.cumsum([len(step) for step in window])[:-1])

    def split(self, samples: Rows) -> list[Packed]:
        """One step's samples as ``accumulate * world_size`` micro-batches; micro-batch ``m`` of rank ``r`` is at
        ``m * world_size + r``.

        The largest come first, and those that run at the same time on different ranks are neighbours in size.
        """
        groups = self._padded(samples) if self.packed is None else self._packed(samples)
        return groups + [()] * (self.world_size * self.accumulate - len(groups))

    def _padded(self, samples: Rows) -> list[Packed]:
        """One sample a row; neighbours in length share a micro-batch, so that padding is least."""
        padded = padded_lengths(self.lengths[samples], self.pad_to_multiple)
        order = np.lexsort((samples, -padded))
        groups = _least_padding(padded[order], self.world_size * self.accumulate, self.max_tokens)
        groups.sort(key=lambda group: -int(padded[order[group[0]]]) * (group[1] - group[0]))
        return [tuple((sample,) for sample in samples[order[start:stop]].tolist()) for start, stop in groups]

    def _packed(self, samples: Rows) -> list[Packed]:
        """Rows of several samples, of like length, dealt out in equal parts."""
        ordered = np.sort(samples)
        parts = self.world_size * self.accumulate
        rows = pack(self.lengths[ordered].tolist(), self._capacity, parts=parts)
        named = [tuple(ordered[row].tolist()) for row in rows]
        cuts = np.linspace(0, len(named), parts + 1).round().astype(int)
        groups = [tuple(named[start:stop]) for start, stop in itertools.pairwise(cuts)]
        return sorted(filter(None, groups), key=len, reverse=True)

    @property
    def _capacity(self) -> int:
        """Positions of a packed row: as asked, rounded up, and no more than a micro-batch holds."""
        assert self.packed is not None
        return min(-(-self.packed // self.pad_to_multiple) * self.pad_to_multiple, self.max_tokens)

    def micro_batches(self, epoch: int, *, rank: int = 0, start: int = 0) -> Iterator[MicroBatch]:
        """What ``rank`` runs in ``epoch``, from its micro-batch ``start`` on."""
        for step, rows in enumerate(self.steps(epoch)):
            if (step + 1) * self.accumulate <= start:
                continue
            # rows that teach nothing may meet; their step's loss is 0
            step_tokens = max(1, int(self.num_supervised[rows].sum()))
            mine = self.split(rows)[rank :: self.world_size]
            for micro_batch in mine[max(0, start - step * self.accumulate) :]:
                yield MicroBatch(micro_batch, step_tokens)

    def needed(self, epochs: int) -> int:
        """Micro-batches per rank that every step of the first ``epochs`` epochs fits into."""
        most = max(self._fewest(rows) for epoch in range(epochs) for rows in self.steps(epoch))
        return math.ceil(most / self.world_size)

    def _fewest(self, rows: Rows) -> int:
        """Fewest micro-batches that a step's rows fit into."""
        if self.packed is None:
            return _fewest_groups(padded_lengths(self.lengths[rows], self.pad_to_multiple), self.max_tokens)
        num_rows = len(first_fit(self.lengths[np.sort(rows)].tolist(), self._capacity))
        return math.ceil(num_rows / (self.max_tokens // self._capacity))

    def check(self, epochs: int) -> None:
        """Raise `UserError` if a row or a step does not fit into the token budget."""
        longest = int(padded_lengths(self.lengths, self.pad_to_multiple).max())
        if longest > self.max_tokens:
            raise UserError(
                f"data.max_tokens is {self.max_tokens}: the longest sample takes {longest} positions; "
                "raise data.max_tokens or lower data.max_length"
            )
        needed = self.needed(epochs)
        if needed > self.accumulate:
            raise UserError(
                f"trainer.accumulate_grad_batches is {self.accumulate}: some steps of {self.batch_size} rows need "
                f"{needed} micro-batches of at most {self.max_tokens} positions (data.max_tokens); "
                f"set it to {needed} or to auto, raise data.max_tokens or lower data.batch_size"
            )


def evaluation_batches(
    lengths: NDArray[np.int32], *, max_tokens: int, pad_to_multiple: int, world_size: int = 1
) -> list[Packed]:
    """All rows once, longest first, in micro-batches within the budget; rank ``r`` runs every ``r::world_size``.

    Filled up with empty ones to a multiple of ``world_size``, so that ranks stay in step and no row counts twice.
    """
    padded = padded_lengths(lengths, pad_to_multiple)
    order = np.lexsort((np.arange(len(lengths)), -padded))
    batches: list[Packed] = []
    start = 0
    while start < len(order):
        stop = start + max(1, max_tokens // int(padded[order[start]]))
        batches.append(tuple((sample,) for sample in order[start:stop].tolist()))
        start = stop
    return batches + [()] * (-len(batches) % world_size)


def padded_lengths(lengths: NDArray[np.int32], multiple: int) -> NDArray[np.int64]:
    """Lengths rounded up to a multiple."""
    return -(-lengths.astype(np.int64) // multiple) * multiple


def _fewest_groups(padded: NDArray[np.int64], max_tokens: int) -> int:
    """Fewest micro-batches within the budget: longest first, each as full as it gets."""
    descending = np.sort(padded)[::-1]
    groups = start = 0
    while start < len(descending):
        start += max(1, max_tokens // int(descending[start]))
        groups += 1
    return groups


def _least_padding(descending: NDArray[np.int64], groups: int, max_tokens: int) -> list[tuple[int, int]]:
    """Cut ``descending`` into at most ``groups`` runs of least total padded size, each within ``max_tokens``.

    Dynamic programme over (runs, rows): the best cut of the first ``j`` rows into ``k`` runs ends with a run ``i..j``
    that costs ``descending[i] * (j - i)``.
    """
    count = len(descending)
    groups = min(groups, count)
    width = np.arange(count + 1)[None, :] - np.arange(count)[:, None]  # (i, j): rows of the run i..j
    cost = descending[:, None] * width.astype(np.float64)
    cost[(width <= 0) | (cost > max_tokens)] = np.inf
    best = np.full(count + 1, np.inf)
    best[0] = 0.0
    cuts = []
    for _ in range(groups):
        total = best[:count, None] + cost
        cuts.append(total.argmin(0))
        best = total.min(0)
    assert np.isfinite(best[count]), "Plan.check comes first"
    runs, stop = [], count
    for cut in reversed(cuts):
        runs.append((int(cut[stop]), stop))
        stop = int(cut[stop])
    return runs[::-1]
