"""How a user's mistake reaches the user: the problems on stderr, exit code 2, no traceback."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from glm_lightning.types import UserError

EXIT_CODE = 2
"""What argparse ends with, too."""


@contextlib.contextmanager
def exit_on_user_error() -> Iterator[None]:
    """End the process with exit code 2 and the list of problems where the block (or function) raises `UserError`."""
    try:
        yield
    except UserError as error:
        print(_listed(error.problems), file=sys.stderr)
        sys.exit(EXIT_CODE)


def _listed(problems: list[str]) -> str:
    if len(problems) == 1:
        return f"error: {problems[0]}"
    lines = [f"{number:>3}. {problem}" for number, problem in enumerate(problems, start=1)]
    return "\n".join([f"error: {len(problems)} problems", *lines])
