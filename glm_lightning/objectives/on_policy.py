"""On-policy distillation: for some samples the student writes the last answer itself, and the teacher judges that.

Agarwal et al. 2024, On-Policy Distillation of Language Models (GKD), arXiv:2306.13649, algorithm 1. Which samples, and
what is written, is decided by the step's seed and the sample's number: micro-batches and ranks change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from glm_lightning.types import IGNORE, Batch


class Writer(Protocol):
    """Draws answers from a network's own distribution."""

    def __call__(
        self, network: nn.Module, prompts: Sequence[list[int]], *, draws: Sequence[int], seed: int, max_new_tokens: int
    ) -> list[list[int]]:
        """An answer to each prompt, with its stop token if it came to one, decided by ``seed`` and its ``draws``."""
        ...


@dataclass(frozen=True)
class Written:
    """A micro-batch in which some rows end in answers of the student's own.

    Args:
        batch: the rows.
        weight: (N,) of each supervised token. Those of a written answer together weigh what was supervised of its
            sample before, so that the sum over the step is still one over its supervised tokens.
        own: (N,) whether the student wrote it: then there is no label.
    """

    batch: Batch
    weight: Tensor
    own: Tensor


def chosen(batch: Batch, *, share: float, seed: int) -> list[int]:
    """The rows of ``batch`` whose answers are to be written; fillers are none of them."""
    return [row for row, sample in enumerate(batch.rows) if sample >= 0 and _draw(seed, sample) < share]


def _draw(seed: int, sample: int) -> float:
    return float(np.random.default_rng([seed, sample]).random())


def rewritten(
    network: nn.Module, batch: Batch, rows: Sequence[int], write: Writer, *, seed: int, max_new_tokens: int
) -> Written:
    """Let ``network`` write the last answer of these ``rows`` of an unpacked batch."""
    width = batch.input_ids.shape[1]
    ids = [row[:length] for row, length in zip(batch.input_ids.tolist(), batch.lengths.tolist(), strict=True)]
    labels = [[IGNORE] * len(row) for row in ids]
    for place, target in zip(batch.where.tolist(), batch.targets.tolist(), strict=True):
        labels[place // width][place % width + 1] = target
    weights = [1.0] * len(ids)
    rows = [row for row in rows if any(label != IGNORE for label in labels[row])]
    prompts = [ids[row][: _last_answer(labels[row])] for row in rows]
    answers = write(network, prompts, draws=[batch.rows[row] for row in rows], seed=seed, max_new_tokens=max_new_tokens)
    for row, prompt, answer in zip(rows, prompts, answers, strict=True):
        weights[row] = sum(label != IGNORE for label in labels[row]) / len(answer)
        ids[row], labels[row] = prompt + answer, [IGNORE] * len(prompt) + answer
    made = _padded(ids, labels, batch)
    owners = made.where // made.input_ids.shape[1]
    own = torch.zeros(len(ids), dtype=torch.bool)
    own[list(rows)] = True
    of_row = torch.tensor(weights, dtype=torch.float64)
    return Written(
        made.to(batch.input_ids.device), *(each[owners].to(batch.input_ids.device) for each in (of_row, own))
    )


def _last_answer(labels: Sequence[int]) -> int:
    """Where the last run of labels begins."""
    place = max(i for i, label in enumerate(labels) if label != IGNORE)
    while place and labels[place - 1] != IGNORE:
        place -= 1
    return place


def _padded(ids: Sequence[list[int]], labels: Sequence[list[int]], batch: Batch) -> Batch:
    longest = max(map(len, ids))

    def filled(rows: Sequence[list[int]], value: int) -> Tensor:
        return torch.tensor([row + [value] * (longest - len(row)) for row in rows])

    lengths = torch.tensor([len(row) for row in ids])
    return Batch.of(filled(ids, 0), filled(labels, IGNORE), lengths, step_tokens=batch.step_tokens, rows=batch.rows)
