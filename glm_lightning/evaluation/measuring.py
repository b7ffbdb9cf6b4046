"""One model's figures: its losses, its answers and their scores."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glm_lightning import metrics
from glm_lightning.data.dataset import Dataset
from glm_lightning.data.module import DataModule
from glm_lightning.evaluation import answers, bootstrap
from glm_lightning.evaluation.answers import Answered
from glm_lightning.evaluation.bootstrap import Score
from glm_lightning.evaluation.losses import losses
from glm_lightning.evaluation.subjects import Arithmetic, Subject
from glm_lightning.files import write_text
from glm_lightning.inference.asking import key_of, progress_bar
from glm_lightning.inference.ledger import Ledger
from glm_lightning.inference.loading import GLM, identity
from glm_lightning.inference.sampling import Sampling
from glm_lightning.metrics import Metric
from glm_lightning.models import precision
from glm_lightning.objectives.sft import SFT
from glm_lightning.types import Conversation


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """How rows are answered and scored.

    Args:
        metrics: names of metrics; None takes those that fit the rows' own answers, and ``also``.
        rows: how many rows are answered; None is all.
        max_new_tokens: longest answer.
        batch_size: rows answered at once.
        sampling: how answers are drawn.
        resamples: how often rows are drawn again for the intervals.
        folder: where answers are kept and written.
        fresh: whether to ask again what was answered in an earlier call.
    """

    metrics: Sequence[str] | None
    also: Sequence[str]
    rows: int | None
    max_new_tokens: int
    batch_size: int
    sampling: Sampling
    resamples: int
    folder: Path
    fresh: bool

    def chosen(self, rows: Sequence[Conversation], glm: GLM) -> list[Metric]:
        """The metrics of these rows."""
        if self.metrics is not None:
            return [metrics.find(name) for name in self.metrics]
        fitting = metrics.fitting([glm.template.expected(row) for row in rows])
        names = {metric.name for metric in fitting}
        return [*fitting, *(metrics.find(name) for name in self.also if name not in names)]


@dataclass(slots=True)
class Result:
    """The figures of a model.

    ``known`` are the answers that were there from an earlier call, ``predictions`` the file of all of them.
    """

    subject: Subject
    arithmetic: Arithmetic
    losses: dict[str, float] = field(default_factory=dict)
    scores: dict[str, Score] = field(default_factory=dict)
    answered: list[Answered] = field(default_factory=list)
    known: int = 0
    predictions: Path | None = None

    @property
    def counts(self) -> dict[str, int]:
        """Rows that were asked, and those of them that something is to be said of."""
        return {
            "rows": len(self.answered),
            "not ended": sum(not each.reply.finished for each in self.answered),
            "empty": sum(each.is_empty for each in self.answered),
            "shortened": sum(each.prompt.shortened for each in self.answered),
        }


def measure_losses(result: Result, glm: GLM, data: DataModule, part: Dataset) -> None:
    """Measure the validation loss of ``part`` as a run does."""
    device = glm.model.device.type
    with progress_bar(f"{result.subject.name}: loss", len(part)) as advance:
        result.losses = losses(
            glm.model,
            data.evaluation_loader(part),
            objective=SFT(),
            context=precision.autocast(result.arithmetic.precision, device=device),
            progress=advance,
        )


def measure_answers(result: Result, glm: GLM, part: Dataset, asking: Asking) -> None:
    """Answer the rows of ``part``, or find them answered, score the answers and write them down."""
    rows = part.conversations(range(len(part))[: asking.rows])
    prompts = answers.prompts(glm, rows, max_new_tokens=asking.max_new_tokens)
    model = [identity(result.subject.found), str(glm.model.dtype), result.arithmetic.precision, glm.model.device.type]
    key = key_of(json.dumps(model), prompts, max_new_tokens=asking.max_new_tokens, sampling=asking.sampling)
    kept = asking.folder / "replies" / f"{key}.jsonl"
    if asking.fresh:
        kept.unlink(missing_ok=True)
    context = precision.autocast(result.arithmetic.precision, device=glm.model.device.type)
    with (
        Ledger.opened(kept, key=key) as ledger,
        progress_bar(f"{result.subject.name}: answers", len(rows)) as advance,
        context,
    ):
        result.known = len(ledger.replies)
        result.answered = answers.answered(
            glm,
            rows,
            prompts,
            max_new_tokens=asking.max_new_tokens,
            batch_size=asking.batch_size,
            sampling=asking.sampling,
            ledger=ledger,
            progress=advance,
        )
    result.scores = bootstrap.scores(
        asking.chosen(rows, glm),
        [each.prediction for each in result.answered],
        [each.reference for each in result.answered],
        resamples=asking.resamples,
        seed=asking.sampling.seed or 0,
    )
    result.predictions = asking.folder / f"{_as_file_name(result.subject.name)}-{key[:8]}.jsonl"
    write_text(result.predictions, "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in _lines(result)))


def _lines(result: Result) -> list[dict[str, Any]]:
    """Each row with the scores that it has alone."""
    return [
        {
            **each.record(),
            "scores": {
                name: float(score.each[row])
                for name, score in result.scores.items()
                if math.isfinite(score.each[row]) and "/" not in name
            },
        }
        for row, each in enumerate(result.answered)
    ]


def _as_file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)
