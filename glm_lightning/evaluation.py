"""Ask a model what a data set asks, and score its answers."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypedDict

import torch
from rich.console import Console
from rich.progress import Progress

from glm_lightning import metrics
from glm_lightning.inference.generation import generate
from glm_lightning.inference.prompts import prompt_ids
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


class Answered(TypedDict):
    """One row: what was asked (the turns' texts, a line break between them), what should have come, what came."""

    prompt: str
    reference: str
    answer: str
    origin: str  # file:line, empty where unknown
    finished: bool  # the model ended the answer itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a run is examined: the ``evaluation`` node of the configuration.

    Args:
        metrics: names of files of `glm_lightning.metrics`.
        rows: how many test rows are answered; None is all.
        max_new_tokens: longest answer.
        batch_size: rows answered at once.
        samples: answers that are shown.
    """

    metrics: list[str]
    rows: int | None = None
    max_new_tokens: int = 128
    batch_size: int = 32
    samples: int = 3

    def __post_init__(self) -> None:
        numbers = {"rows": self.rows or 1, "max_new_tokens": self.max_new_tokens, "batch_size": self.batch_size}
        problems = [f"evaluation.{key} is {value}: must be 1 or more" for key, value in numbers.items() if value < 1]
        if self.samples < 0:
            problems.append(f"evaluation.samples is {self.samples}: must be 0 or more")
        for name in self.metrics:
            try:
                metrics.find(name)
            except UserError as error:
                problems += [f"evaluation.{problem}" for problem in error.problems]
        if problems:
            raise UserError(problems)

    @property
    def measures(self) -> list[Metric]:
        """The metrics' functions."""
        return [metrics.find(name) for name in self.metrics]


@dataclass(frozen=True, slots=True)
class Scores:
    """What the metrics say of all answers, by name, with ``finished`` (percentage); and the answers in row order."""

    metrics: dict[str, float]
    answers: list[Answered]


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
    rows = dataset.conversations(share.of(indices))
    with _progress(len(rows)) as advance:
        answers = generate(
            network,
            prompt_ids([template.prompt(row.prompt(), thinking=_thinking(template, row)) for row in rows], tokenizer),
            stop_ids=[tokenizer.control_id(name) for name in template.stop_tokens],
            pad_id=tokenizer.pad_id,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            progress=advance,
        )
    mine = [
        _answered(row, template, tokenizer.decode(answer.ids), finished=answer.finished)
        for row, answer in zip(rows, answers, strict=True)
    ]
    answered = _gathered(mine, share, total=len(indices))
    texts, references = [each["answer"] for each in answered], [each["reference"] for each in answered]
    values = {name: value for metric in metrics for name, value in metric(texts, references).items()}
    values["finished"] = 100 * statistics.fmean(each["finished"] for each in answered)
    return Scores(values, answered)


def _gathered(mine: list[Answered], share: Share, *, total: int) -> list[Answered]:
    """The answers of all ranks in row order."""
    if share.world_size == 1:
        return mine
    of_ranks: list[Any] = [None] * share.world_size
    torch.distributed.all_gather_object(of_ranks, mine)
    return [of_ranks[row % share.world_size][row // share.world_size] for row in range(total)]


def _answered(row: Conversation, template: Template, text: str, *, finished: bool) -> Answered:
    return Answered(
        prompt="\n".join(message.content for message in row.prompt().messages),
        reference=template.expected(row),
        answer=template.clean(text, thinking=_thinking(template, row), tools=row.tools),
        origin=str(row.origin or ""),
        finished=finished,
    )


def _thinking(template: Template, row: Conversation) -> bool | None:
    """How the row's answer was asked for in training."""
    return template.thinking(next(m for m in reversed(row.messages) if m.role == "assistant"))


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    console = Console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("answering", total=total)
        yield lambda answered: progress.advance(task, answered)
