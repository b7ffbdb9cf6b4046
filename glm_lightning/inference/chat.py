"""Talk to a model in the terminal."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console

from glm_lightning.inference.loading import GLM, load

HELP = "/reset forgets the conversation, /exit or Ctrl-D leaves; Ctrl-C stops an answer"


def main(argv: Sequence[str]) -> None:
    """Answer line by line, streaming, with the conversation remembered. Works in a pipe, too."""
    parser = argparse.ArgumentParser(prog="glm chat", description="Talk to a finished run, an adapter or a model.")
    parser.add_argument("source", help="run folder, adapter folder, model folder, hub name, or demo")
    parser.add_argument("--hub", choices=["huggingface", "modelscope"], help="where a name is looked up")
    parser.add_argument("--system", help="system turn put in front of the conversation")
    parser.add_argument("--max-new-tokens", type=int, default=512, help="longest answer (default: 512)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 (default) is greedy; 0.8 is lively")
    parser.add_argument("--top-p", type=float, default=1.0, help="sample from the most likely tokens of this mass")
    parser.add_argument("--seed", type=int, help="of the sampling")
    parser.add_argument(
        "--thinking",
        action=argparse.BooleanOptionalAction,
        help="reason before answering, or not, where the generation can be switched (default: the generation's own)",
    )
    options = parser.parse_args(argv)
    console = Console(highlight=False)
    interactive = sys.stdin.isatty()
    glm = load(options.source, hub=options.hub)
    if interactive:
        console.print(f"[dim]{options.source}: {HELP}")
    history = _start(options.system)
    while True:
        try:
            line = input("> " if interactive else "").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if line == "/exit":
            return
        if line == "/reset":
            history = _start(options.system)
        elif line:
            history.append({"role": "user", "content": line})
            history.append(_answer(glm, history, console, options))


def _start(system: str | None) -> list[dict[str, str]]:
    return [{"role": "system", "content": system}] if system else []


def _answer(glm: GLM, history: list[dict[str, str]], console: Console, options: argparse.Namespace) -> dict[str, str]:
    pieces = []
    try:
        for piece in glm.stream(
            history,
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            top_p=options.top_p,
            seed=options.seed,
            thinking=options.thinking,
        ):
            pieces.append(piece)
            console.out(piece, end="")
    except KeyboardInterrupt:
        console.out(" ...", end="")
    console.out("")
    message = glm.parse("".join(pieces), thinking=options.thinking)
    turn = {"role": "assistant", "content": message.content}
    return turn | ({"reasoning_content": message.reasoning} if message.reasoning else {})
