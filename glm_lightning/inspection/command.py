"""``glm inspect``: what a user has to know about data before training."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from glm_lightning.data.dataset import Dataset
from glm_lightning.data.module import DataModule
from glm_lightning.files import write_text
from glm_lightning.inference.loading import resolve, words
from glm_lightning.inference.show import named, painted
from glm_lightning.inspection.facts import facts_of, plan_facts, suggestion
from glm_lightning.inspection.page import page
from glm_lightning.inspection.terminal import show
from glm_lightning.models.quiet import quiet
from glm_lightning.tokenizers import Tokenizer
from glm_lightning.types import Conversation, Document, Preference

PAD_TO_MULTIPLE = 64
"""As conf/data/default.yaml has it."""


def main(argv: Sequence[str]) -> None:
    """Measure data, and print what was found; weights are not loaded."""
    options = _parser().parse_args(argv)
    quiet()
    found = resolve(options.model)
    base = found.base if options.template == "auto" else replace(found.base, template=options.template)
    tokenizer, template = words(base, found.files)
    data = DataModule(
        train=options.data,
        val=_part(options.val),
        test=_part(options.test),
        format=options.format,
        encoding=options.encoding,
        max_length=options.max_length,
        max_tokens=max(options.max_tokens, -(-options.max_length // PAD_TO_MULTIPLE) * PAD_TO_MULTIPLE),
        pad_to_multiple=PAD_TO_MULTIPLE,
        batch_size=options.batch_size,
        on_bad_row="quarantine",
        max_bad_share=1.0,
    )
    splits = data.load(tokenizer, template, learned=(Conversation, Document, Preference))
    plan = data.schedule(world_size=1, accumulate="auto", epochs=1)
    context = base.config.max_position_embeddings
    facts = {
        "model": options.model,
        "template": template.name,
        "max_length": options.max_length,
        "parts": {name: facts_of(part, tokenizer=tokenizer) for name, part in splits.parts.items()},
        "plan": plan_facts(plan),
        "notices": splits.read,
        "faults": data.faults(),
        "suggestion": asdict(suggestion(splits.train, max_length=options.max_length, context=context)),
    }
    samples = _samples(splits.train, tokenizer, number=options.samples)
    if options.html:
        write_text(options.html, page(facts, samples))
    if options.json:
        print(json.dumps(facts | {"samples": [_plain(each) for each in samples]}, ensure_ascii=False, indent=2))
    else:
        console = Console()
        show(facts, samples, console)
        if options.html:
            console.print(f"\nThe page: {options.html}", highlight=False, markup=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="glm inspect",
        description="What is in data: lengths, languages, what is learned, what would be cut, duplicates, bad rows.",
    )
    parser.add_argument("data", nargs="+", help="files, folders, globs or hub names of the training rows")
    parser.add_argument("--val", help="validation rows: a file, or a count or share of the training rows")
    parser.add_argument("--test", help="test rows, in the same way")
    parser.add_argument("--model", default="demo", help="whose tokens and template count (default: demo, the embedded)")
    parser.add_argument("--template", default="auto", help="chat template (default: the model's own)")
    parser.add_argument("--format", default="auto", help="format of the rows (default: recognised)")
    parser.add_argument("--encoding", help="text encoding of the files (default: UTF-8)")
    parser.add_argument("--max-length", type=int, default=1024, help="longest sample in tokens (default: 1024)")
    parser.add_argument("--batch-size", type=int, default=16, help="samples of an optimizer step (default: 16)")
    parser.add_argument("--max-tokens", type=int, default=4096, help="positions of a micro-batch (default: 4096)")
    parser.add_argument("--samples", type=int, default=3, help="how many samples are shown (default: 3)")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--html", type=Path, help="write a page with everything to this file")
    return parser


def _part(given: str | None) -> Any:
    """A count or a share where it is a number, else a place."""
    if given is None:
        return None
    for kind in (int, float):
        try:
            return kind(given)
        except ValueError:
            continue
    return given


def _samples(part: Dataset, tokenizer: Tokenizer, *, number: int) -> list[tuple[str, Text]]:
    """Where samples stand and what the model sees of them, spread evenly."""
    chosen = np.unique(np.linspace(0, len(part) - 1, min(number, len(part))).astype(int))
    return [
        (f"{part.origin(i)}{name}", painted(tokenizer, sequence))
        for i in chosen.tolist()
        for name, sequence in named(part.sample(i))
    ]


def _plain(sample: tuple[str, Text]) -> dict[str, str]:
    place, text = sample
    return {"origin": place, "text": text.plain}
