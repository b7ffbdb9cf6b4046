"""Show a row as the model will see it: what is learned, where the control tokens are, what is cut."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from difflib import SequenceMatcher

from rich.console import Console
from rich.text import Text

from glm_lightning.data.encoding import Encoded, Encoder
from glm_lightning.data.inputs import Inputs, sources_of
from glm_lightning.data.reading import Problems
from glm_lightning.inference.loading import UNLIMITED, load_words
from glm_lightning.inference.messages import conversation
from glm_lightning.tokenizers import Tokenizer
from glm_lightning.types import IGNORE, Item, Origin, Sample, UserError

LEARNED, CONTROL, CUT = "bold green", "reverse", "yellow"


def main(argv: Sequence[str]) -> None:
    """Print the samples that a row of a data file, or a question with its answer, becomes; no weights are loaded."""
    options = _parser().parse_args(argv)
    row = _row(options)
    tokenizer, template = load_words(options.model, template=options.template, hub=options.hub)
    whole = Encoder(tokenizer=tokenizer, template=template, max_length=UNLIMITED).encode([row])
    limit = options.max_length or UNLIMITED
    samples = Encoder(tokenizer=tokenizer, template=template, max_length=limit).encode([row])
    console = Console(highlight=False, soft_wrap=True)
    legend = "green: learned; reversed: control token" if console.is_terminal else "[[...]]: learned"
    console.print(
        f"{row.origin or 'question'}: {len(samples)} sample(s), template {template.name}; {legend}", markup=False
    )
    for number, encoded in enumerate(samples, start=1):
        uncut = whole[number - 1].sample().sequences if encoded.truncated else []
        console.print(f"\n{number}. {_summary(encoded, options.max_length)}", style="dim", markup=False)
        for (name, sample), before in itertools.zip_longest(named(encoded.sample()), uncut):
            if name:
                console.print(name.strip(" ()"), style="dim", markup=False)
            text = with_cuts(tokenizer, sample, before.input_ids) if before else painted(tokenizer, sample)
            console.print(text if console.is_terminal else _bracketed(text), markup=False)
            if options.ids:
                console.print(f"input_ids {sample.input_ids}", f"labels {sample.labels}", sep="\n", markup=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="glm show",
        description="Show a row, or a question with its answer, as the model sees it: what is learned is green.",
    )
    parser.add_argument("data", nargs="?", help="file, folder, glob or hub name of the rows")
    parser.add_argument("--row", type=int, default=1, help="which of the rows, from 1 (default: 1)")
    parser.add_argument("--question", help="a user's turn, instead of a row")
    parser.add_argument("--answer", help="the assistant's turn that answers it")
    parser.add_argument("--system", help="system turn in front of them")
    parser.add_argument(
        "--model", default="demo", help="run, adapter or model folder, or hub name (default: demo, the embedded)"
    )
    parser.add_argument("--hub", choices=["huggingface", "modelscope"], help="where the model's name is looked up")
    parser.add_argument("--template", default="auto", help="chat template (default: the model's own)")
    parser.add_argument("--format", default="auto", help="format of the rows (default: recognised)")
    parser.add_argument("--encoding", help="text encoding of the file (default: UTF-8)")
    parser.add_argument(
        "--max-length", type=int, help="longest sample in tokens, as data.max_length (default: no limit)"
    )
    parser.add_argument("--ids", action="store_true", help="print ids and labels as well")
    return parser


def _row(options: argparse.Namespace) -> Item:
    """What the command line asks for: a row, or a question with its answer.

    Raises:
        UserError: there is none, or it is wrong.
    """
    given = {"--question": options.question, "--answer": options.answer}
    missing = [name for name, text in given.items() if text is None]
    if options.data is not None and len(missing) < 2:
        raise UserError("glm show: takes rows of a file, or --question and --answer; give one of them")
    if options.data is None and missing:
        raise UserError(
            f"glm show: {' and '.join(missing)} missing; or give a file of rows: glm show data.jsonl --row 3"
        )
    if options.max_length is not None and options.max_length < 1:
        raise UserError(f"--max-length is {options.max_length}: must be 1 or more")
    if options.data is not None:
        return _row_of_file(options)
    system = [{"role": "system", "content": options.system}] if options.system else []
    user, assistant = (
        {"role": "user", "content": options.question},
        {"role": "assistant", "content": options.answer},
    )
    return conversation([*system, user, assistant])


def _row_of_file(options: argparse.Namespace) -> Item:
    inputs = Inputs.of(sources_of(options.data, key="data", format=options.format, encoding=options.encoding))
    problems, number = Problems(), 0
    for path in inputs.paths:
        for row in inputs.read(path, problems):
            number += 1
            if number == options.row:
                return inputs.parse(row.value, Origin(path, row.line))
    there_are = f"--row is {options.row}: there are {number:,} rows, counted from 1; give one of them"
    raise UserError([*problems.texts, there_are])


def _summary(encoded: Encoded, max_length: int | None) -> str:
    learned = encoded.sample().num_supervised
    text = f"{len(encoded.input_ids):,} tokens, {learned:,} of them learned"
    if not encoded.truncated:
        return text
    return f"{text}; shortened to {max_length:,}: {encoded.cut:,} tokens are left out, {encoded.cut_learned:,} learned"


def named(sample: Sample) -> list[tuple[str, Sample]]:
    """What the model sees at once, with a name where a sample has two of them."""
    names = (" (chosen)", " (rejected)") if sample.num_chosen else ("",)
    return list(zip(names, sample.sequences, strict=True))


def painted(tokenizer: Tokenizer, sample: Sample) -> Text:
    """The text of a sample: learned stretches in green, control tokens reversed."""
    controls = set(tokenizer.controls.values())
    text = Text()
    start = 0
    kinds = [(i in controls, label != IGNORE) for i, label in zip(sample.input_ids, sample.labels, strict=True)]
    # Stretches of one kind are decoded whole: a character may be several tokens.
    for stop in range(1, len(kinds) + 1):
        if stop == len(kinds) or kinds[stop] != kinds[start] or kinds[start][0]:
            control, learned = kinds[start]
            piece = tokenizer.decode(sample.input_ids[start:stop], control=True)
            text.append(piece, style=" ".join([LEARNED] * learned + [CONTROL] * control))
            start = stop
    return text


def with_cuts(tokenizer: Tokenizer, sample: Sample, whole: Sequence[int]) -> Text:
    """The text of a shortened sample, with the number of tokens of ``whole`` that are left out where they were."""
    ids, labels = sample.input_ids, sample.labels
    text = Text()
    for _, first, last, start, stop in SequenceMatcher(None, whole, ids, autojunk=False).get_opcodes():
        if left_out := last - first - (stop - start):
            text.append(f"[... {left_out:,} tokens ...]", style=CUT)
        text.append_text(painted(tokenizer, Sample(ids[start:stop], labels[start:stop])))
    return text


def _bracketed(text: Text) -> str:
    """What colours say, for where there are none: learned stretches in double brackets."""
    out, position = [], 0
    for learned, group in itertools.groupby(text.spans, key=lambda span: LEARNED in str(span.style)):
        spans = list(group)
        out.append(text.plain[position : spans[0].start])
        stretch = text.plain[spans[0].start : spans[-1].end]
        out.append(f"[[{stretch}]]" if learned else stretch)
        position = spans[-1].end
    return "".join([*out, text.plain[position:]])
