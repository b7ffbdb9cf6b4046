"""``glm predict``: answer the rows of files, and write the answers beside them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from glm_lightning.data.inputs import Inputs, sources_of
from glm_lightning.data.questions import Question, questions
from glm_lightning.data.reading import Problems as Faults
from glm_lightning.files import write_text
from glm_lightning.inference import options as given
from glm_lightning.inference.asking import ask, key_of, progress_bar, prompts_of
from glm_lightning.inference.ledger import Ledger, Reply
from glm_lightning.inference.loading import GLM
from glm_lightning.inference.prompts import Prompt
from glm_lightning.types import Message, Problems, UserError


def main(argv: Sequence[str]) -> None:
    """Answer every row of the input; a process that was killed is gone on with by the same command."""
    options = _parser().parse_args(argv)
    part = options.out.with_name(f"{options.out.name}.part")
    problems = Problems()
    sampling = problems.none_in(lambda: given.sampling_of(options))
    problems.none_in(lambda: _check_out(options.out, part, overwrite=options.overwrite))
    model = problems.none_in(lambda: given.found(options))
    rows = problems.none_in(lambda: _rows(options))
    problems.raise_if_any()
    assert sampling is not None
    assert rows is not None
    assert model is not None
    glm = given.loaded(options, model)
    asked = [question.asked for question in rows] * options.n
    prompts = prompts_of(glm, asked, thinking=[options.thinking] * len(asked), max_new_tokens=options.max_new_tokens)
    key = key_of(
        given.identity_of(options, model, glm),
        prompts,
        max_new_tokens=options.max_new_tokens,
        sampling=sampling,
    )
    with Ledger.opened(part, key=key) as ledger, progress_bar("answering", len(prompts)) as advance:
        known = len(ledger.replies)
        replies = ask(
            glm,
            prompts,
            max_new_tokens=options.max_new_tokens,
            sampling=sampling,
            batch_size=options.batch_size,
            ledger=ledger,
            progress=advance,
        )
        said = _said(glm, rows, replies, options.thinking)
        lines = _lines(glm, rows, prompts, replies, said)
        write_text(options.out, "".join(f"{json.dumps(line, ensure_ascii=False, default=str)}\n" for line in lines))
        part.unlink()
    _tell(options.out, prompts, replies, said, known=known)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="glm predict",
        description="Answer the rows of files, in any format that training reads, with answers or without; a line of "
        "JSON for each, in their order. Killed, it goes on where it was when it is called again.",
    )
    parser.add_argument("source", help=given.SOURCE)
    parser.add_argument("input", nargs="+", help="files, folders, globs or hub names of the rows")
    parser.add_argument("--out", type=Path, required=True, help="file of JSON lines that is written")
    parser.add_argument("--overwrite", action="store_true", help="replace that file if it is there")
    parser.add_argument("--format", default="auto", help="format of the rows (default: recognised)")
    parser.add_argument("--encoding", help="text encoding of the files (default: UTF-8)")
    parser.add_argument(
        "--skip-bad-rows", action="store_true", help="leave out rows that cannot be read, and say which"
    )
    parser.add_argument("--batch-size", type=given.positive, default=32, help="rows answered at once (default: 32)")
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


def _said(glm: GLM, rows: Sequence[Question], replies: Sequence[Reply], thinking: bool | None) -> list[Message]:
    """What the replies say, those to all rows again and again."""
    tools = (rows[place % len(rows)].asked.tools for place in range(len(replies)))
    return [
        glm.template.parse(reply.text, thinking=thinking, tools=shown)
        for reply, shown in zip(replies, tools, strict=True)
    ]


def _lines(
    glm: GLM, rows: Sequence[Question], prompts: Sequence[Prompt], replies: Sequence[Reply], said: Sequence[Message]
) -> Iterator[dict[str, Any]]:
    """What is written: the answers to a row one after another."""
    samples = len(replies) // len(rows)
    for number, question in enumerate(rows):
        for sample in range(samples):
            place = sample * len(rows) + number
            line = {"origin": str(question.asked.origin)} | ({"sample": sample} if samples > 1 else {})
            line |= _answer(said[place]) | {"finished": replies[place].finished}
            if prompts[place].shortened:
                line["shortened"] = True
            if question.answered is not None:
                line["reference"] = glm.template.expected(question.answered).text
            yield line | {"row": question.row}


def _answer(said: Message) -> dict[str, Any]:
    answer: dict[str, Any] = {"answer": said.content}
    if said.reasoning is not None:
        answer["reasoning"] = said.reasoning
    if said.tool_calls:
        answer["tool_calls"] = [{"name": call.name, "arguments": call.arguments} for call in said.tool_calls]
    return answer


def _tell(
    out: Path, prompts: Sequence[Prompt], replies: Sequence[Reply], said: Sequence[Message], *, known: int
) -> None:
    counts = {
        "were there from an earlier call": known,
        "end at their longest, not by themselves": sum(not reply.finished for reply in replies),
        "are empty": sum(not message.text.strip() for message in said),
        "answer a prompt that was shortened to the model's context": sum(prompt.shortened for prompt in prompts),
    }
    told = "".join(f"; {count:,} {what}" for what, count in counts.items() if count)
    Console(stderr=True).print(f"{len(replies):,} answers in {out}{told}", highlight=False, markup=False)
