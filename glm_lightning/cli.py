"""The console script ``glm``: one table of commands, each imported only when it is called."""

from __future__ import annotations

import argparse
import importlib
import runpy
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from glm_lightning import __version__


@dataclass(frozen=True)
class Command:
    """A command's line in the help, and the ``module:function`` that is given its arguments."""

    summary: str
    target: str

    def load(self) -> Callable[[list[str]], int | None]:
        """Import the function."""
        module, _, name = self.target.partition(":")
        function: Callable[[list[str]], int | None] = getattr(importlib.import_module(module), name)
        return function


COMMANDS = {
    "train": Command("fine-tune a model: glm train [key=value ...]; glm train --help", "glm_lightning.cli:train"),
    "show": Command(
        "a row of data as the model sees it: what is learned is green, what is cut is counted",
        "glm_lightning.inference.show:main",
    ),
    "inspect": Command(
        "what is in data: lengths, languages, what is learned, what would be cut, duplicates, bad rows",
        "glm_lightning.inspection.command:main",
    ),
    "plan": Command(
        "memory and time of a run under every method, and what fits on a device: glm plan model=... --memory 24GB",
        "glm_lightning.planning.command:main",
    ),
    "chat": Command("talk to a run or a model", "glm_lightning.inference.chat:main"),
    "evaluate": Command(
        "loss and scores of runs and models, side by side, with confidence intervals",
        "glm_lightning.evaluation.command:main",
    ),
    "compare": Command(
        "finished runs side by side: what each has gained on its task, and what it has forgotten",
        "glm_lightning.evaluation.compare:main",
    ),
    "predict": Command(
        "answer the rows of files, with or without answers of their own", "glm_lightning.inference.predict:main"
    ),
    "serve": Command(
        "answer over HTTP as OpenAI's API does, with a chat page: glm serve RUN --adapters FOLDER",
        "glm_lightning.serving.command:main",
    ),
    "export": Command("write a run as a model folder or an adapter for others", "glm_lightning.export.command:main"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``glm COMMAND ...``; returns the exit code: 2 for a user's mistake."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name, rest = _parser().parse_args(arguments[:1]).command, arguments[1:]
    if name is None:
        _parser().print_help()
        return 0
    from glm_lightning.config import exit_on_user_error

    with exit_on_user_error():
        return COMMANDS[_known(name)].load()(rest) or 0


def train(argv: list[str]) -> int | None:
    """Run train.py as ``python train.py ARGUMENTS`` would.

    As ``__main__`` and with its command line, for the ranks of a distributed run are started from both.
    """
    from glm_lightning.config import entry_point

    sys.argv = [str(entry_point()), *argv]
    runpy.run_path(sys.argv[0], run_name="__main__")
    return None


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    parser = argparse.ArgumentParser(
        prog="glm",
        usage="glm COMMAND [ARGUMENTS ...]",
        description="Fine-tune ChatGLM and GLM models, and use what was trained.",
        epilog="\n".join(["commands:", *lines, "", "glm COMMAND --help says more about each."]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("--version", action="version", version=f"glm_lightning {__version__}")
    return parser


def _known(name: str) -> str:
    from glm_lightning.config.nearest import by_likeness
    from glm_lightning.types import UserError

    if name not in COMMANDS:
        existing = ", ".join(by_likeness(name, COMMANDS))
        raise UserError(f"glm {name}: no such command; there are {existing} (nearest first)")
    return name
