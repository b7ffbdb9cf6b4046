"""``glm evaluate``: what models are worth, side by side."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from glm_lightning import metrics
from glm_lightning.data.dataset import Dataset
from glm_lightning.data.module import DataModule
from glm_lightning.evaluation.measuring import Asking, Result, measure_answers, measure_losses
from glm_lightning.evaluation.subjects import Subject, arithmetic, given_rows, own_rows, subjects
from glm_lightning.evaluation.telling import plain, show
from glm_lightning.inference import options as given
from glm_lightning.inference.loading import opened, words
from glm_lightning.methods.fused import fuse
from glm_lightning.models.quiet import quiet
from glm_lightning.types import Conversation, Document, Problems, UserError


def main(argv: Sequence[str]) -> None:
    """Measure every model, and print a column for each."""
    options = _parser().parse_args(argv)
    quiet()
    problems = Problems()
    every = problems.none_in(lambda: subjects(options.source, base=options.base, hub=options.hub))
    asking = problems.none_in(lambda: _asking(options, every or []))
    make = problems.none_in(lambda: _rows(options, every or [])) if every or options.data else None
    problems.raise_if_any()
    assert every is not None
    assert asking is not None
    assert make is not None
    data = [_loaded(make, subject, problems) for subject in every]
    problems.raise_if_any()
    results = [
        _result(subject, module, options, asking)
        for subject, module in zip(every, data, strict=True)
        if module is not None
    ]
    notices = [*_notices(options, every, data), *_against_reports(results, options)]
    if options.json:
        print(json.dumps(plain(results, notices), ensure_ascii=False, indent=2))
    else:
        show(results, notices, Console())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="glm evaluate",
        description="Measure models side by side: validation loss as in training, and scores of their answers with "
        "confidence intervals. A run is asked its own validation and test rows, unless --data names others.",
    )
    parser.add_argument("source", nargs="+", help=given.SOURCE)
    parser.add_argument("--base", action="store_true", help="measure what each model began with, too, in front of it")
    rows = parser.add_argument_group("the rows")
    rows.add_argument("--data", nargs="+", help="files, folders, globs or hub names of rows with answers")
    rows.add_argument("--rows", type=given.positive, help="how many of the rows are answered (default: all)")
    rows.add_argument("--format", default="auto", help="format of --data (default: recognised)")
    rows.add_argument("--encoding", help="text encoding of --data (default: UTF-8)")
    rows.add_argument(
        "--max-length", type=given.positive, help="longest sample of --data in tokens (default: the run's)"
    )
    rows.add_argument("--skip-bad-rows", action="store_true", help="leave out rows of --data that cannot be read")
    scores = parser.add_argument_group("the scores")
    scores.add_argument(
        "--metrics",
        nargs="+",
        choices=metrics.names(),
        metavar="METRIC",
        help=f"of {', '.join(metrics.names())} (default: what fits the rows' answers)",
    )
    scores.add_argument("--only", choices=["loss", "answers"], help="measure nothing else (default: both)")
    scores.add_argument("--resamples", type=int, default=1000, help="for the intervals; 0: none (default: 1000)")
    scores.add_argument("--out", type=Path, default=Path("outputs/evaluations"), help="folder of the answers")
    scores.add_argument("--fresh", action="store_true", help="ask again what was answered in an earlier call")
    scores.add_argument("--json", action="store_true", help="print everything as JSON")
    scores.add_argument("--batch-size", type=given.positive, default=32, help="rows answered at once (default: 32)")
    given.add_length(scores, default=None, otherwise="the run's, else 256")
    given.add_sampling(parser, seed=0)
    given.add_loading(parser)
    return parser


def _asking(options: argparse.Namespace, every: Sequence[Subject]) -> Asking:
    if options.resamples < 0:
        raise UserError(f"--resamples is {options.resamples}: must be 0 (no intervals) or more")
    settings: Any = next((subject.config.get("evaluation", {}) for subject in every if subject.run is not None), {})
    own = {} if options.data else settings
    return Asking(
        metrics=options.metrics,
        also=list(own.get("metrics") or ()),
        rows=options.rows or own.get("rows"),
        max_new_tokens=options.max_new_tokens or settings.get("max_new_tokens") or 256,
        batch_size=options.batch_size,
        sampling=given.sampling_of(options),
        resamples=options.resamples,
        folder=options.out,
        fresh=options.fresh,
    )


def _rows(options: argparse.Namespace, every: Sequence[Subject]) -> Callable[[], DataModule]:
    if not options.data:
        return own_rows(every)
    make = given_rows(
        options.data,
        every,
        format=options.format,
        encoding=options.encoding,
        max_length=options.max_length,
        skip_bad_rows=options.skip_bad_rows,
    )
    make().check()
    return make


def _loaded(make: Callable[[], DataModule], subject: Subject, problems: Problems) -> DataModule | None:
    """The rows as the subject's tokenizer and template have them, before its network is loaded."""

    def load() -> DataModule:
        module = make()
        module.load(*words(subject.found.base, subject.found.files), learned=(Conversation, Document))
        return module

    return problems.none_in(load)


def _result(subject: Subject, data: DataModule, options: argparse.Namespace, asking: Asking) -> Result:
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    ways = arithmetic(subject, dtype=options.dtype, device=torch.device(device).type)
    glm = opened(subject.found, dtype=ways.dtype, quantize=options.quantize, device=device)
    fuse(glm.model)  # as it was trained: the same numbers in 16 bits, too
    result = Result(subject, ways)
    of_loss, of_answers = _parts(data, own=not options.data)
    if of_loss is not None and options.only != "answers":
        measure_losses(result, glm, data, of_loss)
    if of_answers is not None and options.only != "loss":
        measure_answers(result, glm, of_answers, asking)
    return result


def _parts(data: DataModule, *, own: bool) -> tuple[Dataset | None, Dataset | None]:
    """The rows of the loss and those of the answers: a run has test rows for these, or its validation rows.

    Texts that are no conversations ask nothing.
    """
    splits = data.splits
    of_loss, of_answers = (splits.val, splits.test or splits.val) if own else (splits.train, splits.train)
    return of_loss, None if of_answers is None or of_answers.has_texts else of_answers


def _notices(options: argparse.Namespace, every: Sequence[Subject], data: Sequence[DataModule | None]) -> list[str]:
    """What is to be known about the rows, and about models that cannot be compared."""
    first = next(module for module in data if module is not None)
    of_loss, of_answers = _parts(first, own=not options.data)
    notices = [] if options.only == "answers" else [*_of_other_losses(every)]
    if of_loss is not None and of_answers is None:
        notices.append("the rows are texts, which ask nothing: they have a loss and no answers")
    elif of_answers is None:
        notices.append("the run has neither validation nor test rows; say which are asked: --data FILE")
    elif not options.data:
        what = "test" if first.splits.test is not None else "validation"
        notices.append(f"loss on the run's validation rows, answers to its {what} rows")
    else:
        read = (notice.removeprefix("train: ") for notice in first.splits.read)
        notices += [notice.replace("set data.format to fix it", "--format says so") for notice in read]
        if first.splits.train.refused:
            notices.append(f"{len(first.splits.train.refused):,} rows that cannot be read are left out")
    if options.only != "answers":
        notices += _of_other_tokens(every)
    return notices


def _of_other_losses(every: Sequence[Subject]) -> Iterator[str]:
    for subject in every:
        if (objective := subject.other_objective) is not None and not subject.is_base:
            yield f"{subject.name}: loss is the cross-entropy of the rows, not what objective={objective} minimised"


def _of_other_tokens(every: Sequence[Subject]) -> list[str]:
    tokenizers = [words(subject.found.base, subject.found.files)[0].fingerprint for subject in every]
    others = [subject.name for subject, of in zip(every, tokenizers, strict=True) if of != tokenizers[0]]
    if not others:
        return []
    return [f"{', '.join(others)}: has other tokens than {every[0].name}; losses and perplexities are per token"]


def _against_reports(results: Sequence[Result], options: argparse.Namespace) -> list[str]:
    """Whether the figures of each run are those that it has reported itself."""
    changed = (options.data, options.rows, options.dtype, options.quantize, options.max_new_tokens, options.temperature)
    if any(changed):
        return []
    return [text for result in results if (text := _against_report(result)) is not None]


def _against_report(result: Result) -> str | None:
    run = result.subject.run
    if run is None or not run.finished:
        return None
    reported: dict[str, float] = run.read_report()["before" if result.subject.is_base else "metrics"]
    here: dict[str, Any] = {f"val/{name}": value for name, value in result.losses.items()}
    here |= {f"test/{name}": score.value for name, score in result.scores.items()}
    common = [name for name in reported if name in here]
    others = [name for name in common if not math.isclose(here[name], reported[name], rel_tol=1e-12)]
    if not common:
        return None
    name = result.subject.name
    if not others:
        return f"{name}: the {len(common)} figures that report.json has, too, are the same to the last digit"
    told = ", ".join(f"{key} {reported[key]:.6g} (here {here[key]:.6g})" for key in others)
    if result.subject.is_base:
        return f"{name}: before training report.json has the network with what was to be trained on it: {told}"
    stored = str(result.subject.found.base.stored_dtype).removeprefix("torch.")
    rounded = result.subject.found.adapter is None and stored != result.arithmetic.dtype
    why = f" (its weights were rounded to {stored} when they were written)" if rounded else ""
    return f"{name}: report.json has other figures{why}: {told}"
