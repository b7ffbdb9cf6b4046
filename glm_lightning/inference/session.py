"""A conversation in the terminal: its turns, what is sent of them, and how they are kept."""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, final

from glm_lightning.files import write_text
from glm_lightning.inference.asking import prompts_of
from glm_lightning.inference.loading import GLM
from glm_lightning.inference.messages import Definitions, conversation
from glm_lightning.inference.prompts import Prompt
from glm_lightning.inference.sampling import Sampling
from glm_lightning.types import Message, UserError

Turn = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Params:
    """How answers are made: what ``/params`` shows and sets."""

    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 512
    seed: int | None = None
    thinking: bool | None = None

    def __post_init__(self) -> None:
        Sampling(temperature=self.temperature, top_p=self.top_p, seed=self.seed)
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {self.max_new_tokens}: must be 1 or more")

    @property
    def sampling(self) -> Sampling:
        """Those that decide what is drawn."""
        return Sampling(temperature=self.temperature, top_p=self.top_p, seed=self.seed)

    def changed(self, texts: Sequence[str]) -> Params:
        """With the values of texts such as ``temperature=0.8``.

        Raises:
            UserError: a text is none of them, or its value cannot be.
        """
        known = [each.name for each in fields(self)]
        values = {}
        for text in texts:
            name, _, value = text.partition("=")
            if name not in known or not value:
                raise UserError(f"/params {text}: must be NAME=VALUE, with one of {', '.join(known)}")
            values[name] = _value(name, value)
        return replace(self, **values)

    def __str__(self) -> str:
        words = {None: "default", True: "on", False: "off"}
        shown = {each.name: getattr(self, each.name) for each in fields(self)}
        shown["thinking"] = words[self.thinking]
        shown["seed"] = "another each time" if self.seed is None else self.seed
        return "  ".join(f"{name}={value}" for name, value in shown.items())


def _value(name: str, text: str) -> Any:
    switches = {"on": True, "off": False, "true": True, "false": False, "default": None}
    try:
        if name == "thinking":
            return switches[text]
        if name == "seed" and text in ("none", "default"):
            return None
        return (float if name in ("temperature", "top_p") else int)(text)
    except (KeyError, ValueError):
        rule = "on, off or default" if name == "thinking" else "a number"
        raise UserError(f"/params {name}={text}: must be {rule}") from None


@final
@dataclass(slots=True)
class Session:
    """The turns of a conversation, as OpenAI has them, and how its next answer is made.

    Args:
        glm: who answers.
        params: how.
        system: text of the system turn; None: there is none.
        tools: definitions that the model is shown.
        turns: all others, the system turn apart.
    """

    glm: GLM
    params: Params
    system: str | None = None
    tools: Definitions = ()
    turns: list[Turn] = field(default_factory=list)
    _drawn: int = 0
    _file: Path | None = None

    @property
    def messages(self) -> list[Turn]:
        """All turns."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *self.turns]

    def ask(self, text: str) -> None:
        """Put a question behind the turns, in place of one that was stopped before anything was said to it."""
        if self.turns and self.turns[-1]["role"] == "user":
            self.turns.pop()
        self.turns.append({"role": "user", "content": text})

    def prompt(self) -> Prompt:
        """What is sent: as many of the newest rounds as the context holds.

        Raises:
            UserError: the last turn alone is too long, or the template cannot express the turns.
        """
        asked = conversation(self.messages, self.tools)
        (prompt,) = prompts_of(
            self.glm, [asked], thinking=[self.params.thinking], max_new_tokens=self.params.max_new_tokens
        )
        if prompt.tokens_cut:
            raise UserError(
                f"the last turn alone has {prompt.tokens_cut:,} tokens more than the model's context of "
                f"{self.glm.context:,} has room for; say it in fewer words"
            )
        return prompt

    def answer(self, prompt: Prompt) -> Generator[str, None, None]:
        """The pieces of the next answer, which `take` takes when they have come."""
        self._drawn += 1
        return self.glm.stream_prompt(
            prompt.ids,
            max_new_tokens=self.params.max_new_tokens,
            sampling=self.params.sampling,
            draw=self._drawn - 1,
        )

    def settled(self, text: str) -> Message:
        """So much of an unfinished answer as can be shown."""
        return self.glm.template.settled(text, thinking=self.params.thinking, tools=self.tools)

    def take(self, message: Message) -> None:
        """Put an answer behind the turns."""
        turn: Turn = {"role": "assistant", "content": message.content}
        if message.reasoning:
            turn["reasoning_content"] = message.reasoning
        if message.tool_calls:
            calls = [{"name": call.name, "arguments": dict(call.arguments)} for call in message.tool_calls]
            turn["tool_calls"] = [{"type": "function", "function": call} for call in calls]
        self.turns.append(turn)

    def forget(self) -> None:
        """Begin anew; what was saved is kept."""
        self.turns.clear()
        self._file = None

    def take_back(self) -> bool:
        """Go back to where the last question was asked; whether there was one."""
        asked = [number for number, turn in enumerate(self.turns) if turn["role"] == "user"]
        if asked:
            del self.turns[asked[-1] + 1 :]
        return bool(asked)

    def save(self, file: Path) -> None:
        """Write the conversation as a row that training reads: one line of JSON.

        Raises:
            UserError: nothing was said, the file is somebody else's, or it cannot be written.
        """
        if not self.turns:
            raise UserError("/save: nothing was said yet")
        if file.exists() and file.absolute() != self._file:
            raise UserError(f"/save: {file} is there already, and not from this conversation; name another file")
        row = {"messages": self.messages} | ({"tools": list(self.tools)} if self.tools else {})
        try:
            write_text(file, json.dumps(row, ensure_ascii=False) + "\n")
        except OSError as error:
            raise UserError(f"/save: {file} cannot be written: {error.strerror}") from error
        self._file = file.absolute()

    def load(self, file: Path) -> None:
        """Go on with a conversation that `save` wrote, or the first row of any file of OpenAI's messages.

        Raises:
            UserError: there is none in it; then the conversation stays as it was.
        """
        try:
            row = _first_row(file.read_text(encoding="utf-8"))
            messages, tools = list(row["messages"]), list(row.get("tools") or ())
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(f"/load: {file} cannot be read as a conversation: {error!r}") from error
        conversation(messages, tools)
        has_system = bool(messages) and messages[0]["role"] == "system"
        self.system = messages[0]["content"] if has_system else None
        self.turns = messages[1:] if has_system else messages
        self.tools = tools
        self._file = file.absolute()


def _first_row(text: str) -> Any:
    """Of JSON lines, or of one JSON value that is a row or a list of rows."""
    try:
        value = json.loads(text)
    except ValueError:
        value = json.loads(text.partition("\n")[0])
    return value[0] if isinstance(value, list) else value


def tools_in(file: Path) -> Definitions:
    """The definitions of tools in a JSON file.

    Raises:
        UserError: it holds no list of them.
    """
    try:
        tools = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--tools {file}: cannot be read: {error}") from error
    if not isinstance(tools, list):
        raise UserError(f"--tools {file}: must hold a list of definitions, as OpenAI has them")
    return tools
