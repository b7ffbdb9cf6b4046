"""Scores of answers, of one process or of the ranks of a run."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch

from glm_lightning.evaluation import answers
from glm_lightning.evaluation.answers import Answered, Record
from glm_lightning.inference.asking import progress_bar
from glm_lightning.inference.loading import GLM
from glm_lightning.metrics import Metric
from glm_lightning.templates import Template
from glm_lightning.tokenizers import Tokenizer
from glm_lightning.types import Conversation, UserError


class Conversations(Protocol):
    """What is needed of a data set."""

    def __len__(self) -> int: ...

    def conversations(self, indices: Iterable[int], /) -> list[Conversation]:
        """The turns of some rows, an answer among them."""
        ...


@dataclass(frozen=True, slots=True)
class Scores:
    """What the metrics say of all answers, by name, with ``finished`` (percentage); and the answers in row order."""

    metrics: dict[str, float]
    answers: list[Record]


class Share(NamedTuple):
    """Which of the rows a rank answers: every ``world_size``-th from ``rank`` on.

    ``in_step``: all ranks answer equally many, the last row more than once, for each holds parts of the network.
    """

    rank: int
    world_size: int
    in_step: bool = False

    def of(self, indices: Sequence[int]) -> Sequence[int]:
        """This rank's."""
        mine = indices[self.rank :: self.world_size]
        surplus = -(-len(indices) // self.world_size) - len(mine)
        return [*mine, *[indices[-1]] * surplus] if self.in_step else mine


ALL = Share(0, 1)


def score(
    network: Any,
    dataset: Conversations,
    *,
    tokenizer: Tokenizer,
    template: Template,
    metrics: Sequence[Metric],
    max_new_tokens: int,
    batch_size: int = 32,
    limit: int | None = None,
    share: Share = ALL,
) -> Scores:
    """Answer the last question of each row greedily and compare with the row's own last answer.

    Only the first ``limit`` rows are asked (None: all); the network's training mode and torch's random state stay.
    Where several ranks call this, each answers its ``share`` and all get the scores of all.

    Raises:
        UserError: there is no row to ask.
    """
    indices = range(len(dataset))[:limit]
    if not indices:
        raise UserError("evaluation: there is no row to answer; give data with answers, and a limit of at least 1")
    glm = GLM(model=network, tokenizer=tokenizer, template=template)
    rows = dataset.conversations(share.of(indices))
    asked = answers.prompts(glm, rows, max_new_tokens=max_new_tokens)
    with progress_bar("answering", len(rows)) as advance:
        mine = answers.answered(
            glm, rows, asked, max_new_tokens=max_new_tokens, batch_size=batch_size, progress=advance
        )
    of_all = _gathered(mine, share, total=len(indices))
    predictions, references = [each.prediction for each in of_all], [each.reference for each in of_all]
    values = {name: value for metric in metrics for name, value in metric.score(predictions, references).items()}
    values["finished"] = 100 * statistics.fmean(each.reply.finished for each in of_all)
    return Scores(values, [each.record() for each in of_all])


def _gathered(mine: list[Answered], share: Share, *, total: int) -> list[Answered]:
    """The answers of all ranks in row order."""
    if share.world_size == 1:
        return mine
    of_ranks: list[Any] = [None] * share.world_size
    torch.distributed.all_gather_object(of_ranks, mine)
    return [of_ranks[row % share.world_size][row // share.world_size] for row in range(total)]
