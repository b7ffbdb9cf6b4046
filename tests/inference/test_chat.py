"""``glm chat``: in a terminal, in a pipe, and what it keeps of a conversation."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from terminals import Terminal
from tiny_runs import ROOT

import glm_lightning
from glm_lightning.data.inputs import Inputs, sources_of
from glm_lightning.data.questions import questions
from glm_lightning.data.reading import Problems
from glm_lightning.inference import chat
from glm_lightning.inference.loading import GLM
from glm_lightning.inference.screen import Answer
from glm_lightning.inference.session import Params, Session
from glm_lightning.types import Message, ToolCall, UserError

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def glm(tiny_glm: Path) -> GLM:
    return glm_lightning.load(tiny_glm)


class Lines:
    """A screen whose lines are known in advance."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines = iter(lines)
        self.told: list[str] = []
        self.asked: list[str] = []

    def read(self, prompt: str) -> str | None:
        self.asked.append(prompt)
        return next(self._lines, None)

    def tell(self, text: str) -> None:
        self.told.append(text)

    say = note = warn = tell

    def answer(self) -> Answer:
        return Answer(Console(file=io.StringIO()))


def talk(session: Session, *lines: str) -> Lines:
    screen = Lines(lines)
    chat.Chat(session, screen).run()  # type: ignore[arg-type]
    return screen


def roles(session: Session) -> list[str]:
    return [turn["role"] for turn in session.messages]


def says(monkeypatch: pytest.MonkeyPatch, *answers: str) -> list[list[int]]:
    """Let any model say these, one after another; the prompts that it is given."""
    left, asked = iter(answers), []

    def stream(self: GLM, prompt_ids: list[int], **_: Any) -> Iterable[str]:
        asked.append(prompt_ids)
        yield from next(left)

    monkeypatch.setattr(GLM, "stream_prompt", stream)
    return asked


def test_turns_are_remembered_and_answers_are_those_of_the_python_face(glm: GLM) -> None:
    session = Session(glm, Params(max_new_tokens=6), system="be kind")
    talk(session, "你好", "who are you", "/exit", "never asked")
    turns: list[dict[str, Any]] = [{"role": "system", "content": "be kind"}]
    for question in ("你好", "who are you"):
        turns.append({"role": "user", "content": question})
        answer = glm.parse("".join(glm.stream(turns, max_new_tokens=6)))
        turns.append({"role": "assistant", "content": answer.content})
    assert session.messages == turns


def test_the_oldest_rounds_are_not_sent_once_they_do_not_fit(glm: GLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glm.model.config, "max_position_embeddings", 64)
    asked = says(monkeypatch, *["fox"] * 9)
    session = Session(glm, Params(max_new_tokens=8), system="be kind")
    screen = talk(session, *[f"question {number}" for number in range(9)])
    assert all(len(ids) <= 64 - 8 for ids in asked)
    assert len(session.turns) == 18  # nothing is forgotten
    assert any("no longer fit into the context" in text for text in screen.told)
    fewer = (glm.prompt([*session.messages[:1], *session.turns[start:-1]]) for start in range(0, 18, 2))
    assert asked[-1] == next(ids for ids in fewer if len(ids) <= 64 - 8)
    screen = talk(session, "the quick brown fox " * 30, "/params")
    assert "the last turn alone has" in screen.told[0]
    assert len(session.turns) == 18


def test_commands(glm: GLM, monkeypatch: pytest.MonkeyPatch) -> None:
    says(monkeypatch, "one", "two", "three", "four", "five")
    session = Session(glm, Params())
    talk(session, "q")
    talk(session, "/retry")
    assert [turn["content"] for turn in session.turns] == ["q", "two"]
    screen = talk(session, "/system you are a fox", "/system", "/system -", "/system")
    assert screen.told == ["you are a fox", "you are a fox", "(no system turn)", "(no system turn)"]
    talk(session, "/system you are a fox", "//system is a word")
    assert session.messages[0] == {"role": "system", "content": "you are a fox"}
    assert session.turns[2]["content"] == "/system is a word"
    talk(session, "/reset")
    assert session.turns == []
    assert session.system == "you are a fox"
    for line, told in (("/nonsense", "no such command"), ("/retry", "nothing was asked"), ("/save", "name a file")):
        assert told in talk(session, line).told[-1]
    assert "/params" in talk(session, "/help").told[0]


def test_params_are_shown_set_and_checked(glm: GLM) -> None:
    session = Session(glm, Params())
    talk(session, "/params temperature=0.8 top_p=0.9 seed=3 thinking=off max_new_tokens=7")
    assert session.params == Params(temperature=0.8, top_p=0.9, seed=3, thinking=False, max_new_tokens=7)
    assert "temperature=0.8" in talk(session, "/params").told[0]
    talk(session, "/params seed=none thinking=default")
    assert session.params.seed is None
    assert session.params.thinking is None
    for wrong in ("heat=1", "temperature", "temperature=hot", "top_p=2", "max_new_tokens=0", "thinking=much", "'a"):
        before = session.params
        (told,) = talk(session, f"/params {wrong}").told
        assert wrong.split("=")[0] in told
        assert session.params == before


def test_a_seed_draws_every_answer_anew_and_all_of_them_again(glm: GLM) -> None:
    lines = ("who", "/retry", "/retry")
    params = Params(temperature=3.0, seed=1, max_new_tokens=6)
    drawn = []
    for _ in range(2):
        session = Session(glm, params)
        answers = []
        for line in lines:
            talk(session, line)
            answers.append(session.turns[-1]["content"])
        drawn.append(answers)
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == 3


def test_a_conversation_is_saved_as_a_row_of_data_and_gone_on_with(
    glm: GLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    says(monkeypatch, "狐狸", '\nweather\n{"city": "北京"}', "rain", "again")
    session = Session(glm, Params(), system="be kind", tools=[WEATHER])
    file = tmp_path / "with a space" / "saved.jsonl"
    talk(session, "你好", "weather?", "18 degrees", f"/save {file}")
    inputs = Inputs.of(sources_of(file, key="x"), asked=True)
    (found,) = questions(inputs, problems := Problems())
    assert not problems
    assert found.answered is not None
    messages = found.answered.messages
    assert [message.role for message in messages] == [
        "system",
        "user",
        "assistant",
        "user",
        "assistant",
        "tool",
        "assistant",
    ]
    assert messages[4].tool_calls == (ToolCall("weather", {"city": "北京"}),)
    assert messages[5].content == "18 degrees"
    other = Session(glm, Params())
    talk(other, f"/load {file}")
    assert (other.messages, other.tools) == (session.messages, [WEATHER])
    talk(other, "more", f"/save {file}")  # its own file may be written again
    assert len(json.loads(file.read_text(encoding="utf-8"))["messages"]) == 9
    kept = file.read_bytes()
    says(monkeypatch, "new")
    assert "is there already" in talk(other, "/reset", "x", f"/save {file}").told[-1]
    assert file.read_bytes() == kept


def test_files_that_are_no_conversations_change_nothing(glm: GLM, tmp_path: Path) -> None:
    session = Session(glm, Params(max_new_tokens=2))
    talk(session, "hello")
    before = list(session.turns)
    for number, text in enumerate(("", "[]", "{}", '{"messages": 3}', '{"messages": [{"role": "fox"}]}', "\x00")):
        file = tmp_path / f"{number}.json"
        file.write_text(text, encoding="utf-8")
        assert len(talk(session, f"/load {file}").told) == 1
        assert session.turns == before
        (told,) = talk(session, f"/save {file}").told
        assert "is there already" in told
        assert file.read_text(encoding="utf-8") == text
    assert "cannot be read" in talk(session, f"/load {tmp_path / 'none'}").told[0]


def test_tools_are_asked_for_their_results(glm: GLM, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = says(monkeypatch, '\nweather\n{"city": "北京"}', "it rains", '\nweather\n{"city": "x"}', "else")
    session = Session(glm, Params(), tools=[WEATHER])
    screen = talk(session, "weather?", "rain", "and there?", "", "so")
    assert screen.asked.count("weather gives: ") == 2
    assert roles(session) == ["user", "assistant", "tool", "assistant", "user", "assistant", "user", "assistant"]
    assert asked[1] == glm.prompt(session.turns[:3], [WEATHER])


def test_what_was_stopped_before_a_word_can_be_asked_again(glm: GLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: GLM, prompt_ids: list[int], **_: Any) -> Iterable[str]:
        yield from said
        raise KeyboardInterrupt

    monkeypatch.setattr(GLM, "stream_prompt", interrupted)
    session, said = Session(glm, Params()), []
    talk(session, "one", "two")
    assert session.turns == [{"role": "user", "content": "two"}]
    said = ["so ", "far"]
    talk(session, "/retry")
    assert [turn["content"] for turn in session.turns] == ["two", "so far"]


def test_reasoning_is_dimmed_on_a_terminal_and_left_out_elsewhere() -> None:
    parts = [Message("assistant", "", reasoning="let me"), Message("assistant", "", reasoning="let me see")]
    parts += [Message("assistant", "4", reasoning="let me see"), Message("assistant", "42", reasoning="let me see")]
    for terminal, expected in ((True, "\x1b[2mlet me\x1b[0m\x1b[2m see\x1b[0m\n42\n"), (False, "42\n")):
        file = io.StringIO()
        answer = Answer(
            Console(file=file, force_terminal=terminal, color_system="standard" if terminal else None, highlight=False)
        )
        for part in parts:
            answer.show(part)
        answer.end(parts[-1], stopped=False)
        assert file.getvalue().replace("\n\n", "\n") == expected


def test_calls_are_shown_whole() -> None:
    file = io.StringIO()
    answer = Answer(Console(file=file))
    answer.end(Message("assistant", "", tool_calls=(ToolCall("weather", {"city": "北京"}),)), stopped=False)
    assert file.getvalue().splitlines()[-1] == "-> weather(city='北京')"


ENDLESS = "from glm_lightning.inference.loading import GLM\nGLM.stop_ids = property(lambda glm: [])\n"


def program(*arguments: str) -> str:
    return f"{ENDLESS}from glm_lightning.cli import main\nraise SystemExit(main({['chat', *arguments]!r}))"


@pytest.mark.slow
def test_a_conversation_in_a_terminal(tiny_glm: Path, tmp_path: Path) -> None:
    """Keys as a user types them: Chinese and the key that deletes it, Ctrl-C in an answer and at the prompt."""
    with Terminal(program(str(tiny_glm), "--max-new-tokens", "4"), cwd=tmp_path) as terminal:
        terminal.until("Ctrl-D leaves")
        terminal.until("> ")
        terminal.type("你好狐\x7f\x7fx\n")  # two characters are gone, not two bytes
        terminal.until("> ")
        terminal.type("/params max_new_tokens=100000\n")
        terminal.until("max_new_tokens=100000")
        terminal.until("> ")
        terminal.type("tell me all\n")
        terminal.until("tell me all\r\n")
        terminal.until_more()
        terminal.interrupt(" ...")
        terminal.until("> ")
        terminal.type("half a line")
        terminal.interrupt("(Ctrl-D or /exit leaves)")
        terminal.until("> ")
        terminal.type("/save saved.jsonl\n")
        terminal.until("4 turns are in saved.jsonl")
        terminal.until("> ")
        terminal.type("\x04")
        assert terminal.end() == 0
        assert "Traceback" not in terminal.shown
    turns = json.loads((tmp_path / "saved.jsonl").read_text(encoding="utf-8"))["messages"]
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * 2
    assert turns[0]["content"] == "你x"
    assert turns[2]["content"] == "tell me all"
    assert turns[3]["content"]  # what was said before it was stopped


def test_a_conversation_in_a_pipe(tiny_glm: Path, tmp_path: Path, glm: GLM) -> None:
    lines = ["你好", "/nonsense", "/params max_new_tokens=3", b"\xff who", "/save saved.jsonl"]
    given = b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines)
    arguments = ["chat", str(tiny_glm), "--max-new-tokens", "5"]
    done = subprocess.run(
        [sys.executable, "-c", f"from glm_lightning.cli import main; raise SystemExit(main({arguments!r}))"],
        input=given, capture_output=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    said = done.stdout.decode("utf-8")
    assert "\x1b" not in said
    assert "/nonsense: no such command" in done.stderr.decode()
    turns = json.loads((tmp_path / "saved.jsonl").read_text(encoding="utf-8"))["messages"]
    assert [turn["content"] for turn in turns[::2]] == ["你好", "\ufffd who"]
    assert turns[1]["content"] == glm.generate(turns[:1], max_new_tokens=5)
    assert said.startswith(turns[1]["content"].lstrip())
    assert "max_new_tokens=3" in said
    assert said.rstrip("\n").endswith(turns[3]["content"])


def test_mistakes_are_told_at_once(tiny_glm: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        chat.main(["no/such", "--temperature", "-1", "--tools", str(tmp_path / "none.json")])
    assert [problem.split()[0] for problem in caught.value.problems] == ["temperature", "--tools", "model.path"]
