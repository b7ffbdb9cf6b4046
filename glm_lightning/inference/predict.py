"""``glm predict``: answer the rows of files, and write the answers beside them."""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from glm_lightning.data.inputs import Inputs, sources_of
from glm_lightning.data.questions import Question, questions
from glm_lightning.data.reading import Problems as Faults
from glm_lightning.files import write_text
from glm_lightning.inference import options as given
from glm_lightning.inference import respondents
from glm_lightning.inference.asking import progress_bar
from glm_lightning.inference.endpoint import KEY, is_endpoint
from glm_lightning.inference.ledger import Ledger
from glm_lightning.inference.messages import openai_form
from glm_lightning.inference.respondents import Answer, Model, OfEndpoint, Respondent
from glm_lightning.types import Conversation, Message, Problems, UserError

_MOST_SHOWN = 10


def main(argv: Sequence[str]) -> None:
    """Answer every row of the input; a process that was killed is gone on with by the same command."""
    options = _parser().parse_args(argv)
    part = options.out.with_name(f"{options.out.name}.part")
    respond, rows = _checked(options, part)
    respondent = respond(rows)
    total = len(rows) * options.n
    with Ledger.opened(part, key=respondent.key) as ledger, progress_bar("answering", total) as advance:
        known = len(ledger.replies)
        failures = respondent.ask(ledger, advance)
        _tell_failures(rows, failures, part, skip=options.skip_bad_rows)
        answers = {place: respondent.answer(place, reply) for place, reply in ledger.replies.items()}
        lines = _lines(rows, answers, respondent.reference, samples=options.n)
        write_text(options.out, "".join(f"{json.dumps(line, ensure_ascii=False, default=str)}\n" for line in lines))
        part.unlink()
    _tell(options.out, list(answers.values()), known=known)


def _checked(
    options: argparse.Namespace, part: Path
) -> tuple[Callable[[Sequence[Question]], Respondent], list[Question]]:
    """Who answers, not loaded yet, and the rows.

    Raises:
        UserError: everything that is wrong with the command line and the rows.
    """
    problems = Problems()
    problems.none_in(lambda: respondents.check_options(options))
    sampling = problems.none_in(lambda: given.sampling_of(options))
    problems.none_in(lambda: _check_out(options.out, part, overwrite=options.overwrite))
    model = None if is_endpoint(options.source) else problems.none_in(lambda: given.found(options))
    rows = problems.none_in(lambda: _rows(options))
    problems.raise_if_any()
    assert sampling is not None
    assert rows is not None
    if model is None:
        return functools.partial(OfEndpoint, options, sampling), rows
    return functools.partial(Model, options, model, sampling), rows


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="glm predict",
        description="Answer the rows of files, in any format that training reads, with answers or without; a line of "
        "JSON for each, in their order, which another model learns as it is: glm train data.train=OUT. Killed, it goes "
        "on where it was when it is called again.",
        epilog=f"The key of an endpoint comes from the environment variable {KEY}.",
    )
    parser.add_argument(
        "source",
        help=f"{given.SOURCE}; or the address of an endpoint that speaks OpenAI's protocol, such as http://localhost:8000/v1",
    )
    parser.add_argument("input", nargs="+", help="files, folders, globs or hub names of the rows")
    parser.add_argument("--out", type=Path, required=True, help="file of JSON lines that is written")
    parser.add_argument("--overwrite", action="store_true", help="replace that file if it is there")
    parser.add_argument("--format", default="auto", help="format of the rows (default: recognised)")
    parser.add_argument("--encoding", help="text encoding of the files (default: UTF-8)")
    parser.add_argument(
        "--skip-bad-rows",
        action="store_true",
        help="leave out rows that cannot be read, or that an endpoint fails, and say which",
    )
    parser.add_argument("--model", metavar="NAME", help="of an endpoint's models, where it offers several")
    parser.add_argument(
        "--batch-size",
        type=given.positive,
        default=32,
        help="rows answered, or requests under way, at once (default: 32)",
    )
    given.add_length(parser, default=512, otherwise="512")
    parser.add_argument("-n", type=given.positive, default=1, help="answers to each row (default: 1)")
    given.add_thinking(parser)
    given.add_sampling(parser, seed=0)
    given.add_loading(parser)
    given.add_adapter(parser)
    return parser


def _check_out(out: Path, part: Path, *, overwrite: bool) -> None:
    if out.exists() and not overwrite and not part.exists():
        raise UserError(f"--out is {str(out)!r}: that file is there already; name another one, or say --overwrite")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out is {str(out)!r}: its folder cannot be made: {error.strerror}") from error


def _rows(options: argparse.Namespace) -> list[Question]:
    sources = sources_of(options.input, key="INPUT", format=options.format, encoding=options.encoding)
    faults = Faults()
    rows = list(questions(Inputs.of(sources, asked=True), faults))
    if faults and not options.skip_bad_rows:
        raise UserError([*faults.texts, "mend these rows, or leave them out: --skip-bad-rows"])
    if not rows:
        raise UserError([*faults.texts, "INPUT: there is no row to answer"])
    for text in faults.texts:
        Console(stderr=True).print(f"left out: {text}", highlight=False, markup=False, soft_wrap=True)
    return rows


def _tell_failures(rows: Sequence[Question], failures: Mapping[int, str], part: Path, *, skip: bool) -> None:
    """Say which rows have no answer, or refuse to go on without them."""
    texts = [f"{rows[place % len(rows)].asked.origin}: {reason}" for place, reason in sorted(failures.items())]
    if not texts:
        return
    shown = texts[:_MOST_SHOWN]
    if more := len(texts) - len(shown):
        shown.append(f"... and {more:,} more")
    if not skip:
        again = f"the same command asks these {len(texts):,} again, and no others (they are kept in {part})"
        raise UserError([*shown, f"{again}; to leave them out, add --skip-bad-rows"])
    for text in shown:
        Console(stderr=True).print(f"left out: {text}", highlight=False, markup=False, soft_wrap=True)


def _lines(
    rows: Sequence[Question],
    answers: Mapping[int, Answer],
    reference: Callable[[Conversation], str],
    *,
    samples: int,
) -> Iterator[dict[str, Any]]:
    """What is written: the answers to a row one after another, each with the conversation that training reads."""
    for number, question in enumerate(rows):
        for sample in range(samples):
            answer = answers.get(sample * len(rows) + number)
            if answer is None:
                continue
            line = {"origin": str(question.asked.origin)} | ({"sample": sample} if samples > 1 else {})
            line |= _said(answer.said) | {"finished": answer.finished}
            if answer.shortened:
                line["shortened"] = True
            if question.answered is not None:
                line["reference"] = reference(question.answered)
            whole = replace(question.asked, messages=(*question.asked.messages, answer.said))
            yield line | openai_form(whole) | {"row": question.row}


def _said(said: Message) -> dict[str, Any]:
    answer: dict[str, Any] = {"answer": said.content}
    if said.reasoning is not None:
        answer["reasoning"] = said.reasoning
    if said.tool_calls:
        answer["tool_calls"] = [{"name": call.name, "arguments": call.arguments} for call in said.tool_calls]
    return answer


def _tell(out: Path, answers: Sequence[Answer], *, known: int) -> None:
    counts = {
        "were there from an earlier call": known,
        "are cut off at their longest (before a model learns them, raise --max-new-tokens)": sum(
            not answer.finished for answer in answers
        ),
        "are empty": sum(not answer.said.text.strip() for answer in answers),
        "answer a prompt that was shortened to the model's context": sum(answer.shortened for answer in answers),
    }
    told = "".join(f"; {count:,} {what}" for what, count in counts.items() if count)
    Console(stderr=True).print(f"{len(answers):,} answers in {out}{told}", highlight=False, markup=False)
