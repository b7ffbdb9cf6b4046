"""Many questions, and answers that outlive the process that gave them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import glm_lightning
from glm_lightning.inference.asking import ask, key_of, prompts_of
from glm_lightning.inference.generation import generate
from glm_lightning.inference.ledger import Ledger, Reply
from glm_lightning.inference.loading import GLM
from glm_lightning.inference.prompts import Prompt
from glm_lightning.inference.sampling import GREEDY, Sampling
from glm_lightning.types import Conversation, Message, UserError

QUESTIONS = ["who are you", "裙", "the quick brown fox", "material 棉", "who", "are you a fox?", "style 简约 and 显瘦"]
SAMPLING = Sampling(temperature=1.0, seed=3)
OPTIONS: dict[str, Any] = {"max_new_tokens": 8, "sampling": SAMPLING, "batch_size": 3}


@pytest.fixture(scope="module")
def glm(tiny_glm: Path) -> GLM:
    return glm_lightning.load(tiny_glm)


@pytest.fixture(scope="module")
def prompts(glm: GLM) -> list[Prompt]:
    rows = [Conversation((Message("user", question),)) for question in QUESTIONS]
    return prompts_of(glm, rows, thinking=[None] * len(rows), max_new_tokens=8)


def test_replies_are_what_is_generated(glm: GLM, prompts: list[Prompt]) -> None:
    done: list[int] = []
    replies = ask(glm, prompts, **OPTIONS, progress=done.append)
    assert sum(done) == len(QUESTIONS)
    ids = [prompt.ids for prompt in prompts]
    expected = generate(glm.model, ids, stop_ids=glm.stop_ids, pad_id=glm.tokenizer.pad_id, **OPTIONS)
    assert replies == [Reply(glm.tokenizer.decode(each.ids), each.finished, len(each.ids)) for each in expected]


class Killed(BaseException):
    """What ends a process in the middle."""


def killed_after(path: Path, glm: GLM, prompts: list[Prompt], *, batches: int) -> None:
    """Ask until so many batches are kept."""
    with Ledger.opened(path, key="k") as ledger:
        add, count = ledger.add, 0

        def counted(replies: dict[int, Reply]) -> None:
            nonlocal count
            add(replies)
            count += 1
            if count == batches:
                raise Killed

        ledger.add = counted  # type: ignore[method-assign]
        with pytest.raises(Killed):
            ask(glm, prompts, **OPTIONS, ledger=ledger)


@pytest.mark.parametrize("batches", [1, 2, 3])
def test_who_goes_on_asks_only_what_is_missing(
    glm: GLM, prompts: list[Prompt], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batches: int
) -> None:
    expected, path = ask(glm, prompts, **OPTIONS), tmp_path / "ledger"
    killed_after(path, glm, prompts, batches=batches)
    asked: list[int] = []
    forward = glm.model.forward

    def counting(*args: Any, **kwargs: Any) -> Any:
        asked.extend([len(kwargs["input_ids"])] * (kwargs["input_ids"].shape[1] > 1))
        return forward(*args, **kwargs)

    done: list[int] = []
    monkeypatch.setattr(glm.model, "forward", counting)
    with Ledger.opened(path, key="k") as ledger:
        assert ask(glm, prompts, **OPTIONS, ledger=ledger, progress=done.append) == expected
    assert asked == [3, 3, 1][batches:]
    assert sum(done) == len(QUESTIONS)
    with Ledger.opened(path, key="k") as ledger:
        assert dict(ledger.replies) == dict(enumerate(expected))


def test_half_a_line_counts_for_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    replies = [{0: Reply("好\n", True, 3)}, {1: Reply("", False, 8), 2: Reply("a", True, 1)}]
    with Ledger.opened(path, key="k") as ledger:
        for batch in replies:
            ledger.add(batch)
    whole = path.read_bytes()
    first_end = whole.index(b"\n", whole.index(b"\n") + 1) + 1
    for length in range(first_end, len(whole)):
        path.write_bytes(whole[:length])
        with Ledger.opened(path, key="k") as ledger:
            assert ledger.replies == replies[0]
            ledger.add(replies[1])
        assert path.read_bytes() == whole
    path.write_bytes(whole[:5])  # not even the first line is whole
    with Ledger.opened(path, key="k") as ledger:
        assert ledger.replies == {}


def test_another_key_is_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    with Ledger.opened(path, key="k") as ledger:
        ledger.add({0: Reply("a", True, 1)})
    before = path.read_bytes()
    with pytest.raises(UserError, match="was begun with another model"), Ledger.opened(path, key="other"):
        pass
    assert path.read_bytes() == before


def test_two_processes_do_not_write_at_once(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    with (
        Ledger.opened(path, key="k"),
        pytest.raises(UserError, match="another process is writing"),
        Ledger.opened(path, key="k"),
    ):
        pass


@pytest.mark.parametrize("text", ["what I have written myself\n", '{"id": 1}\n', '{"key": "other"}'])
def test_a_file_that_is_something_else_is_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="was begun with another model"), Ledger.opened(path, key="k"):
        pass
    assert path.read_text(encoding="utf-8") == text


def test_the_key_names_all_that_answers_depend_on(prompts: list[Prompt]) -> None:
    keys = {
        key_of("m", prompts, max_new_tokens=8, sampling=GREEDY),
        key_of("n", prompts, max_new_tokens=8, sampling=GREEDY),
        key_of("m", prompts[1:], max_new_tokens=8, sampling=GREEDY),
        key_of("m", prompts, max_new_tokens=9, sampling=GREEDY),
        key_of("m", prompts, max_new_tokens=8, sampling=SAMPLING),
        key_of("m", prompts, max_new_tokens=8, sampling=Sampling(temperature=1.0, seed=4)),
    }
    assert len(keys) == 6
    assert key_of("m", prompts, max_new_tokens=8, sampling=GREEDY) in keys


def test_what_has_no_room_is_shortened(glm: GLM, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = [Message(role, "the quick brown fox") for _ in range(9) for role in ("user", "assistant")]
    row = Conversation((*rounds, Message("user", "who are you")))
    monkeypatch.setattr(glm.model.config, "max_position_embeddings", 40)
    for max_new_tokens, room in ((8, 32), (100, 20)):  # an answer is not given more than half of the context
        (prompt,) = prompts_of(glm, [row], thinking=[None], max_new_tokens=max_new_tokens)
        assert prompt.turns_left_out > 0
        assert len(prompt.ids) <= room
    (reply,) = ask(glm, [prompt], max_new_tokens=100)
    assert reply.finished or reply.num_tokens + len(prompt.ids) == 40
