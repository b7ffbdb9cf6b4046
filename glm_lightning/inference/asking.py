"""Ask a model many questions: prompts that fit its context, batches of like length, answers that are kept."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from glm_lightning.files import digest
from glm_lightning.inference.generation import answer, batches
from glm_lightning.inference.ledger import Ledger, Reply
from glm_lightning.inference.loading import GLM
from glm_lightning.inference.prompts import Prompt, prompt_ids, shortened
from glm_lightning.inference.sampling import GREEDY, Sampling
from glm_lightning.types import Conversation


def prompts_of(
    glm: GLM, conversations: Sequence[Conversation], *, thinking: Sequence[bool | None], max_new_tokens: int
) -> list[Prompt]:
    """The prompt of each conversation, shortened where the context has no room for it and its answer.

    No answer is given more than half of the context in advance.

    Raises:
        UserError: a conversation cannot be rendered, or not even its last turn fits.
    """
    segments = [glm.template.prompt(each, thinking=how) for each, how in zip(conversations, thinking, strict=True)]
    room = None if glm.context is None else glm.context - min(max_new_tokens, glm.context // 2)
    return [
        Prompt(ids)
        if room is None or len(ids) <= room
        else shortened(each, thinking=how, template=glm.template, tokenizer=glm.tokenizer, room=room)
        for ids, each, how in zip(prompt_ids(segments, glm.tokenizer), conversations, thinking, strict=True)
    ]


def ask(
    glm: GLM,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    batch_size: int = 32,
    ledger: Ledger | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Reply]:
    """The reply to each prompt, in their order; those that ``ledger`` has are not asked again, the others go there.

    Batches depend on the prompts alone: who goes on where another was killed makes the same ones.
    """
    replies = {} if ledger is None else dict(ledger.replies)
    for batch in batches([len(prompt.ids) for prompt in prompts], batch_size):
        rows = [row for row in batch if row not in replies]
        if progress and len(rows) < len(batch):
            progress(len(batch) - len(rows))
        if not rows:
            continue
        answers = answer(
            glm.model,
            [prompts[row].ids for row in rows],
            draws=rows,
            stop_ids=glm.stop_ids,
            pad_id=glm.tokenizer.pad_id,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            progress=progress,
        )
        new = {
            row: Reply(glm.tokenizer.decode(each.ids), each.finished, len(each.ids))
            for row, each in zip(rows, answers, strict=True)
        }
        if ledger is not None:
            ledger.add(new)
        replies |= new
    return [replies[row] for row in range(len(prompts))]


def key_of(model: str, prompts: Sequence[Prompt], *, max_new_tokens: int, sampling: Sampling) -> str:
    """Names all that replies depend on; ``model`` names the weights and how they compute."""
    ways = (sampling.temperature, sampling.top_p, sampling.seed)
    return digest(model, [prompt.ids for prompt in prompts], max_new_tokens, ways)


@contextlib.contextmanager
def progress_bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on the terminal, if there is one; what it yields takes how many more are done."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.advance(task, done)
