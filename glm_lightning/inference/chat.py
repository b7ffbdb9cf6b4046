"""``glm chat``: talk to a model in the terminal."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import final

from glm_lightning.inference import options as given
from glm_lightning.inference.screen import Screen
from glm_lightning.inference.session import Params, Session, tools_in
from glm_lightning.types import Message, Problems, UserError

HELP = """\
/reset             forget the conversation
/retry             answer the last question again
/system [TEXT]     show or set the system turn; /system - removes it
/params [K=V ...]  show or set temperature, top_p, max_new_tokens, seed, thinking
/save FILE         write the conversation as a line of JSON, which training reads
/load FILE         go on with one
/help              this
/exit              leave, as Ctrl-D does; Ctrl-C stops an answer
A message that begins with a slash is written with two."""


def main(argv: Sequence[str]) -> None:
    """Answer line by line, streaming, with the conversation remembered. Works in a pipe, too."""
    options = _parser().parse_args(argv)
    problems = Problems()
    params = problems.none_in(
        lambda: Params(
            temperature=options.temperature,
            top_p=options.top_p,
            max_new_tokens=options.max_new_tokens,
            seed=options.seed,
            thinking=options.thinking,
        )
    )
    tools = problems.none_in(lambda: tools_in(options.tools) if options.tools else ())
    model = problems.none_in(lambda: given.found(options))
    problems.raise_if_any()
    assert params is not None
    assert tools is not None
    assert model is not None
    glm = given.loaded(options, model)
    screen = Screen()
    screen.note(f"{options.source}: /help tells what there is, Ctrl-C stops an answer, Ctrl-D leaves")
    with _gone_listener():
        Chat(Session(glm, params, options.system, tools), screen).run()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="glm chat", description="Talk to a finished run, an adapter or a model. In a pipe, each line is a turn."
    )
    parser.add_argument("source", help=given.SOURCE)
    parser.add_argument("--system", help="system turn put in front of the conversation")
    parser.add_argument("--tools", type=Path, help="JSON file with definitions of tools, as OpenAI has them")
    given.add_length(parser, default=512, otherwise="512")
    given.add_thinking(parser)
    given.add_sampling(parser, seed=None)
    given.add_loading(parser)
    given.add_adapter(parser)
    return parser


@final
class Chat:
    """Lines in, answers out."""

    def __init__(self, session: Session, screen: Screen) -> None:
        self._session, self._screen = session, screen
        self._commands: dict[str, Callable[[str], None]] = {
            "/reset": self._reset,
            "/retry": self._retry,
            "/system": self._system,
            "/params": self._params,
            "/save": self._save,
            "/load": self._load,
            "/help": lambda _: screen.say(HELP),
        }

    def run(self) -> None:
        """Until the end of all lines, or ``/exit``."""
        while True:
            try:
                line = self._screen.read("> ")
                if line is None or line in ("/exit", "/quit"):
                    return
                self._take(line)
            except UserError as error:
                self._screen.warn(str(error))
            except KeyboardInterrupt:
                self._screen.note("")

    def _take(self, line: str) -> None:
        if line.startswith("/") and not line.startswith("//"):
            name, _, rest = line.partition(" ")
            if name not in self._commands:
                raise UserError(f"{name}: no such command; there are {', '.join(self._commands)} and /exit")
            self._commands[name](rest.strip())
        elif line:
            self._session.ask(line.removeprefix("/") if line[0] == "/" else line)
            self._answer()

    def _answer(self) -> None:
        """Answer the last turn, and go on while the model calls tools and somebody gives their results."""
        while self._said().tool_calls and self._results():
            pass

    def _said(self) -> Message:
        session = self._session
        try:
            prompt = session.prompt()
        except UserError:
            session.turns.pop()  # what cannot be asked
            raise
        if prompt.turns_left_out:
            self._screen.note(f"(the oldest {prompt.turns_left_out} turns no longer fit into the context)")
        answer, text, stopped = self._screen.answer(), "", False
        try:
            with contextlib.closing(session.answer(prompt)) as pieces:
                for piece in pieces:
                    text += piece
                    answer.show(session.settled(text))
        except KeyboardInterrupt:
            stopped = True
        message = session.glm.parse(text, session.tools, thinking=session.params.thinking)
        answer.end(message, stopped=stopped)
        if text or not stopped:
            session.take(message)
        return Message("assistant", "") if stopped else message

    def _results(self) -> bool:
        """Ask for what the tools that were called give; whether all of it was told."""
        results = []
        for call in self._session.turns[-1]["tool_calls"]:
            result = self._screen.read(f"{call['function']['name']} gives: ")
            if not result:
                self._screen.note("(no result: the answer stays as it is)")
                return False
            results.append({"role": "tool", "content": result})
        self._session.turns += results
        return True

    def _reset(self, _: str) -> None:
        self._session.forget()
        self._screen.note("(forgotten)")

    def _retry(self, _: str) -> None:
        if not self._session.take_back():
            raise UserError("/retry: nothing was asked yet")
        if not self._session.params.temperature:
            self._screen.note("(greedy: the same answer comes; /params temperature=0.8 makes others)")
        self._answer()

    def _system(self, text: str) -> None:
        if text:
            self._session.system = None if text == "-" else text
        self._screen.say(self._session.system or "(no system turn)")

    def _params(self, text: str) -> None:
        self._session.params = self._session.params.changed(text.split())
        self._screen.say(str(self._session.params))

    def _save(self, text: str) -> None:
        self._session.save(_file(text, "/save"))
        self._screen.note(f"({len(self._session.turns)} turns are in {text})")

    def _load(self, text: str) -> None:
        self._session.load(_file(text, "/load"))
        self._screen.note(f"({len(self._session.turns)} turns)")


def _file(text: str, command: str) -> Path:
    if not text:
        raise UserError(f"{command}: name a file")
    return Path(text).expanduser()


@contextlib.contextmanager
def _gone_listener() -> Iterator[None]:
    """End without a word where nobody reads any more: ``glm chat demo | head -1``."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
