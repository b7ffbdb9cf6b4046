"""The terminal that a conversation is held in, or the pipe."""

from __future__ import annotations

import contextlib
import sys
from typing import Any, final

from rich.console import Console

from glm_lightning.types import Message


@final
class Screen:
    """Reads lines and writes answers as they come.

    On a terminal lines are edited (readline), and what is no answer is dimmed; a pipe gets the answers alone.
    """

    def __init__(self) -> None:
        self.is_interactive = sys.stdin.isatty()
        self._console = Console(highlight=False, soft_wrap=True)
        if self.is_interactive:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401 - input() edits lines with it once it is there
        else:
            # What was typed elsewhere in another encoding is shown as such; nobody is there to type it again.
            _reconfigured(sys.stdin, encoding="utf-8", errors="replace")
            _reconfigured(sys.stdout, encoding="utf-8")

    def read(self, prompt: str) -> str | None:
        """The next line; None at the end of all. Ctrl-C drops the line that was begun."""
        while True:
            try:
                line = input(prompt if self.is_interactive else "")
            except EOFError:
                if self.is_interactive:
                    print()
                return None
            except KeyboardInterrupt:
                self.note("\n(Ctrl-D or /exit leaves)")
            else:
                # half of a character that a terminal has sent
                return line.encode("utf-8", "replace").decode("utf-8").strip()

    def say(self, text: str) -> None:
        """Say what was asked for by a command."""
        self._console.print(text, markup=False)

    def note(self, text: str) -> None:
        """Say something that is no answer; in a pipe nobody hears it."""
        if self.is_interactive:
            self._console.print(text, style="dim", markup=False)

    def warn(self, text: str) -> None:
        """Say what went wrong, in a pipe on stderr."""
        if self.is_interactive:
            self._console.print(text, style="red", markup=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def answer(self) -> Answer:
        """An answer that is shown as it comes."""
        return Answer(self._console)


@final
class Answer:
    """An answer on the screen; its reasoning dimmed, and in a pipe left out."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._reasoning = self._content = 0

    def show(self, message: Message) -> None:
        """Show what of ``message`` is new: it has grown since the last time."""
        reasoning, content = (message.reasoning or "")[self._reasoning :], message.content[self._content :]
        self._reasoning += len(reasoning)
        if reasoning and self._console.is_terminal:
            self._console.out(reasoning, end="", style="dim")
        if content and not self._content and self._reasoning and self._console.is_terminal:
            self._console.out("\n")
        self._content += len(content)
        if content:
            self._console.out(content, end="")

    def end(self, message: Message, *, stopped: bool) -> None:
        """Show the rest of it, and its calls."""
        self.show(message)
        self._console.out(" ..." if stopped else "")
        for call in message.tool_calls:
            self._console.out(f"-> {call.name}({_arguments(call.arguments)})")


def _arguments(arguments: Any) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())


def _reconfigured(stream: Any, **how: str) -> None:
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(**how)
