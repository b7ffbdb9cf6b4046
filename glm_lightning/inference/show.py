"""Show a row as the model will see it: what is learned, and where the control tokens are."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from glm_lightning.inference.loading import GLM, load
from glm_lightning.types import IGNORE, Sample

LEARNED, CONTROL = "bold green", "reverse"


def main(argv: Sequence[str]) -> None:
    """Print the samples of one conversation, given as a user's text and an answer."""
    parser = argparse.ArgumentParser(
        prog="glm show", description="Show a question and its answer as the model sees them; what is learned is green."
    )
    parser.add_argument("source", help="run folder, adapter folder, model folder, hub name, or demo")
    parser.add_argument("question", help="the user's turn")
    parser.add_argument("answer", help="the assistant's turn")
    parser.add_argument("--system", help="system turn put in front")
    parser.add_argument("--ids", action="store_true", help="print ids and labels as well")
    options = parser.parse_args(argv)
    glm = load(options.source)
    messages = [{"role": "user", "content": options.question}, {"role": "assistant", "content": options.answer}]
    if options.system:
        messages.insert(0, {"role": "system", "content": options.system})
    console = Console()
    for sample in glm.encode(messages):
        console.print(painted(glm, sample))
        if options.ids:
            console.print(f"input_ids {sample.input_ids}", f"labels {sample.labels}", sep="\n", highlight=False)


def painted(glm: GLM, sample: Sample) -> Text:
    """The text of a sample: learned stretches in green, control tokens reversed."""
    controls = set(glm.tokenizer.controls.values())
    text = Text()
    start = 0
    kinds = [(i in controls, label != IGNORE) for i, label in zip(sample.input_ids, sample.labels, strict=True)]
    # Stretches of one kind are decoded whole: a character may be several tokens.
    for stop in range(1, len(kinds) + 1):
        if stop == len(kinds) or kinds[stop] != kinds[start] or kinds[start][0]:
            control, learned = kinds[start]
            piece = glm.tokenizer.decode(sample.input_ids[start:stop], control=True)
            text.append(piece, style=" ".join([LEARNED] * learned + [CONTROL] * control))
            start = stop
    return text
