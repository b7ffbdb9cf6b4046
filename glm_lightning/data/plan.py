"""The epoch plan: which rows meet in which optimizer step, and in which micro-batch of which rank.

Sample lengths are known after encoding, so an epoch is a pure function in two cuts. `Plan.steps` makes the optimizer
steps from (lengths, seed, epoch, batch size) alone: the same whatever the hardware. `Plan.split` cuts one step
into exactly ``world_size * accumulate`` micro-batches within a token budget. Every step's number of supervised tokens
is known before it runs, so its loss is exact whatever the split, and resuming is planning again and skipping.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final, overload

import numpy as np
from numpy.typing import NDArray

from glm_lightning.data.packing import most_rows, pack
from glm_lightning.types import UserError

Rows = NDArray[np.int64]

_BLOCK = 1 << 20
"""Entries of the tables of costs that are held at once."""

LOOKED_AT = 200
"""Steps whose balance between ranks is measured."""

Packed = tuple[tuple[int, ...], ...]
"""Rows of a micro-batch, and the samples in each: one, unless they are packed."""


class MicroBatch(NamedTuple):
    """Rows that one rank runs at once. No rows: a filler that keeps the ranks in step and weighs nothing."""

    rows: Packed
    step_tokens: int  # supervised tokens of the whole optimizer step


@final
@dataclass(frozen=True, slots=True)
class Steps(Sequence[Rows]):
    """The rows of each optimizer step of an epoch, in one array: there may be hundreds of thousands of steps.

    Args:
        rows: (rows,) rows of one part after the other.
        ends: (steps + 1,) where each part ends, with a 0 in front.
        order: (steps,) the part that each step is.
    """

    rows: Rows
    ends: Rows
    order: Rows

    def __len__(self) -> int:
        return len(self.order)

    @overload
    def __getitem__(self, step: int) -> Rows: ...
    @overload
    def __getitem__(self, step: slice) -> list[Rows]: ...
    def __getitem__(self, step: int | slice) -> Rows | list[Rows]:
        if isinstance(step, slice):
            return [self[each] for each in range(*step.indices(len(self)))]
        part = self.order[step]
        return self.rows[self.ends[part] : self.ends[part + 1]]

    def tables(self) -> Iterator[Rows]:
        """All rows as tables (steps, rows of a step), in no order: one for each size that steps have."""
        sizes = np.diff(self.ends)
        for size in np.unique(sizes):
            first, last = np.flatnonzero(sizes == size)[[0, -1]]
            yield self.rows[self.ends[first] : self.ends[last + 1]].reshape(-1, size)


@dataclass(frozen=True)
class Plan:
    """A training set's epochs.

    Args:
        lengths: (rows,) positions of each sample; of a pair those of its longer sequence, or, packed, those of both.
        num_supervised: (rows,) supervised tokens of each sample; 1 for a pair, as its step's loss is a mean over pairs.
        batch_size: rows of an optimizer step, over all ranks and micro-batches.
        max_tokens: largest padded size of a micro-batch, rows times positions.
        pad_to_multiple: a micro-batch's positions are rounded up to a multiple of this: few distinct shapes.
        seed: of the order.
        group_steps: steps whose rows are sorted by length together.
        packed: positions of a row that several samples may share; None: a row holds one sequence.
        sequences: of each sample, which take a row each unless they are packed: 2 for pairs.
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
    sequences: int = 1
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

    def steps(self, epoch: int) -> Steps:
        """The rows of each optimizer step: a seeded permutation in equal parts, so that no small rest is left.

        Rows of ``group_steps`` neighbouring steps are then exchanged so that each step has rows of like length, and
        the steps are put in random order again.
        """
        rng = np.random.default_rng([self.seed, epoch])
        rows, order = rng.permutation(len(self.lengths)), np.arange(self.num_steps)
        size, larger = divmod(len(rows), self.num_steps)
        sizes = np.where(order < larger, size + 1, size)
        if self.group_steps > 1:
            window = np.repeat(order // self.group_steps, sizes)
            by_window = window * (int(self.lengths.max()) + 1) + self.lengths[rows]
            rows = rows[np.argsort(by_window, kind="stable")]
            order = rng.permutation(self.num_steps)
        return Steps(rows, np.concatenate([[0], np.cumsum(sizes)]), order)

    def split(self, samples: Rows) -> list[Packed]:
        """One step's samples as ``accumulate * world_size`` micro-batches; micro-batch ``m`` of rank ``r`` is at
        ``m * world_size + r``.

        The largest come first, and those that run at the same time on different ranks are neighbours in size. The
        ranks take turns in having the larger ones, so that each has about as much to do in the whole step.
        """
        groups = self._padded(samples) if self.packed is None else self._packed(samples)
        groups += [()] * (self.world_size * self.accumulate - len(groups))
        rounds = [groups[start : start + self.world_size] for start in range(0, len(groups), self.world_size)]
        return [group for number, each in enumerate(rounds) for group in (each[::-1] if number % 2 else each)]

    def waiting(self, *, in_step: bool, epoch: int = 0) -> float:
        """Share of its time that a rank waits for the others, if time goes by padded positions.

        Args:
            in_step: the ranks wait for each other in every micro-batch; else at the end of every optimizer step.
            epoch: the epoch that is looked at, in `LOOKED_AT` of its steps.
        """
        steps = self.steps(epoch)
        chosen = np.linspace(0, len(steps) - 1, min(len(steps), LOOKED_AT)).round().astype(int)
        sizes = np.array([[self.size(group) for group in self.split(steps[step])] for step in chosen])
        of_ranks = sizes.reshape(len(chosen), self.accumulate, self.world_size)  # (steps, micro-batches, ranks)
        shared = of_ranks if in_step else of_ranks.sum(1, keepdims=True)
        return 1 - float(shared.mean(2).sum() / shared.max(2).sum())

    def largest(self) -> Packed:
        """The micro-batch of most padded positions, of those steps of the first epoch that hold most or the longest."""
        steps, padded = self.steps(0), padded_lengths(self.lengths, self.pad_to_multiple)
        starts = steps.ends[:-1]
        found = (reduce.reduceat(padded[steps.rows], starts) for reduce in (np.add, np.maximum))
        chosen = np.unique(np.concatenate([np.argsort(-each, kind="stable")[:LOOKED_AT] for each in found]))
        parts = (steps.rows[steps.ends[part] : steps.ends[part + 1]] for part in chosen)
        return max((group for part in parts for group in self.split(part)), key=self.size)

    def size(self, micro_batch: Packed) -> int:
        """Padded positions of a micro-batch; a filler is one row."""
        rows = max(1, len(micro_batch)) * (1 if self.packed is not None else self.sequences)
        return rows * self.width(micro_batch)

    def width(self, micro_batch: Packed) -> int:
        """Padded positions of each of its rows."""
        lengths = np.array([sum(int(self.lengths[sample]) for sample in row) for row in micro_batch] or [1])
        return int(padded_lengths(lengths, self.pad_to_multiple).max())

    def _padded(self, samples: Rows) -> list[Packed]:
        """One sample a row; neighbours in length share a micro-batch, so that padding is least."""
        padded = padded_lengths(self.lengths[samples], self.pad_to_multiple)
        order = np.lexsort((samples, -padded))
        groups = _least_time(padded[order], self._budget, ranks=self.world_size, rounds=self.accumulate)
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
    def _budget(self) -> int:
        """Padded positions of a micro-batch that the rows of one sequence each may take."""
        return self.max_tokens // self.sequences

    @property
    def _capacity(self) -> int:
        """Positions of a packed row: as asked, rounded up, and no more than a micro-batch holds."""
        assert self.packed is not None
        return min(-(-self.packed // self.pad_to_multiple) * self.pad_to_multiple, self.max_tokens)

    def micro_batches(self, epoch: int, *, rank: int = 0, start: int = 0) -> Iterator[MicroBatch]:
        """What ``rank`` runs in ``epoch``, from its micro-batch ``start`` on."""
        steps = self.steps(epoch)
        for step in range(start // self.accumulate, len(steps)):
            rows = steps[step]
            # rows that teach nothing may meet; their step's loss is 0
            step_tokens = max(1, int(self.num_supervised[rows].sum()))
            mine = self.split(rows)[rank :: self.world_size]
            for micro_batch in mine[max(0, start - step * self.accumulate) :]:
                yield MicroBatch(micro_batch, step_tokens)

    def needed(self, epochs: int) -> int:
        """Micro-batches per rank that every step of the first ``epochs`` epochs fits into.

        Raises:
            UserError: a row does not fit into the token budget.
        """
        padded = padded_lengths(self.lengths, self.pad_to_multiple)
        longest = int(padded.max()) * (1 if self.packed is not None else self.sequences)
        if longest > self.max_tokens:
            raise UserError(
                f"data.max_tokens is {self.max_tokens}: the longest sample takes {longest} positions; "
                "raise data.max_tokens or lower data.max_length"
            )
        lengths = padded.astype(np.int32) if self.packed is None else self.lengths
        tables = (table for epoch in range(epochs) for table in self.steps(epoch).tables())
        return math.ceil(max(self._fewest(lengths[table]) for table in tables) / self.world_size)

    def _fewest(self, lengths: NDArray[np.int32]) -> int:
        """Fewest micro-batches that each of some steps fits into, of samples of these lengths (steps, samples)."""
        descending = np.sort(lengths, axis=1)[:, ::-1]
        if self.packed is None:
            return _fewest_groups(descending, self._budget)
        return math.ceil(most_rows(descending, self._capacity) / (self.max_tokens // self._capacity))

    def check(self, needed: int) -> None:
        """Raise `UserError` if steps `needed` more micro-batches than there are."""
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


def _fewest_groups(descending: NDArray[np.signedinteger[Any]], max_tokens: int) -> int:
    """Fewest micro-batches within the budget that each step (steps, rows) fits into: each as full as it gets."""
    steps, start = np.arange(len(descending)), np.zeros(len(descending), np.int64)
    groups = 0
    while len(steps):
        groups += 1
        start += max_tokens // descending[steps, start]
        left = start < descending.shape[1]
        steps, start = steps[left], start[left]
    return groups


def _least_time(descending: NDArray[np.int64], max_tokens: int, *, ranks: int, rounds: int) -> list[tuple[int, int]]:
    """Cut ``descending`` into at most ``ranks * rounds`` runs, largest first, so that a step ends soonest.

    A round of micro-batches takes as long as its largest. On one rank the least padding is best; several wait less for
    each other if no run may be much larger than it must: some limits are tried between the least and the budget.
    """
    groups, limits = ranks * rounds, [max_tokens]
    if ranks > 1:
        least = _least_limit(descending, groups, max_tokens)
        limits = sorted({least, *(int(least * share) for share in _LIMITS if least * share < max_tokens), max_tokens})
    cuts = [_by_size(_least_padding(descending, groups, limit), descending) for limit in limits]
    return min(cuts, key=lambda cut: sum(_sizes(cut, descending)[::ranks]))


_LIMITS = (1.1, 1.25, 1.5, 2.0)
"""Multiples of the least possible size of the largest micro-batch that are tried."""


def _least_limit(descending: NDArray[np.int64], groups: int, max_tokens: int) -> int:
    """Smallest size that the largest of ``groups`` runs can have, by bisection; ``max_tokens`` is possible."""
    low, high = int(descending[0]), max_tokens
    while low < high:
        middle = (low + high) // 2
        if _fewest_groups(descending[None], middle) <= groups:
            high = middle
        else:
            low = middle + 1
    return high


def _sizes(cut: list[tuple[int, int]], descending: NDArray[np.int64]) -> list[int]:
    return [int(descending[start]) * (stop - start) for start, stop in cut]


def _by_size(cut: list[tuple[int, int]], descending: NDArray[np.int64]) -> list[tuple[int, int]]:
    sizes = dict(zip(cut, _sizes(cut, descending), strict=True))
    return sorted(cut, key=lambda run: -sizes[run])


def _least_padding(descending: NDArray[np.int64], groups: int, max_tokens: int) -> list[tuple[int, int]]:
    """Cut ``descending`` into at most ``groups`` runs of least total padded size, each within ``max_tokens``.

    Dynamic programme over (runs, rows): the best cut of the first ``j`` rows into ``k`` runs ends with a run ``i..j``
    that costs ``descending[i] * (j - i)``; no run has more rows than the budget holds of the shortest.
    """
    count = len(descending)
    longest = min(count, max_tokens // int(descending[-1]))
    best = np.full(count + 1, np.inf)
    best[0] = 0.0
    cuts = []
    for _ in range(min(groups, count)):
        cut, best = _one_more_run(descending, best, longest=longest, max_tokens=max_tokens)
        cuts.append(cut)
    assert np.isfinite(best[count]), "Plan.check comes first"
    runs, stop = [], count
    for cut in reversed(cuts):
        runs.append((int(cut[stop]), stop))
        stop = int(cut[stop])
    return runs[::-1]


def _one_more_run(
    descending: NDArray[np.int64], best: NDArray[np.float64], *, longest: int, max_tokens: int
) -> tuple[Rows, NDArray[np.float64]]:
    """For each number of first rows: where the last run begins if there is one run more, and the least padded size.

    Args:
        descending: (rows,) padded lengths.
        best: (rows + 1,) least padded sizes so far.
        longest: most rows that a run may have.
        max_tokens: largest padded size of a run.
    """
    cut, least = np.zeros(len(best), np.int64), np.full(len(best), np.inf)
    width = np.arange(longest, 0, -1)[:, None]  # of equally good runs the longest
    block = max(1, _BLOCK // longest)
    for first in range(1, len(best), block):
        stop = np.arange(first, min(first + block, len(best)))
        start = stop - width
        size = descending[start] * width
        total = np.where((start >= 0) & (size <= max_tokens), best[start] + size, np.inf)
        cut[stop] = stop - width[total.argmin(0), 0]
        least[stop] = total.min(0)
    return cut, least
