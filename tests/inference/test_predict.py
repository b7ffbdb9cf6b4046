"""``glm predict``: answers in a file, the same whatever happens on the way."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forked import PROCESSES

import glm_lightning
from glm_lightning.inference import predict
from glm_lightning.types import UserError

QUESTIONS = ["who are you", "裙子的材质？", "the quick brown fox jumps over the lazy dog", "你好", "fox", "a", "棉 棉"]
Predict = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    rows = [{"instruction": text, "id": number} for number, text in enumerate(QUESTIONS)]
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def predicted(tmp_path: Path, questions: Path, tiny_glm: Path) -> Predict:
    def run(*options: str, rows: Path = questions, out: str = "out.jsonl") -> list[dict[str, Any]]:
        arguments = [str(tiny_glm), str(rows), "--out", str(tmp_path / out), "--max-new-tokens", "8", *options]
        predict.main(arguments)
        text = (tmp_path / out).read_text(encoding="utf-8")
        assert not (tmp_path / f"{out}.part").exists()
        return [json.loads(line) for line in text.splitlines()]

    return run


def test_every_row_is_answered_in_order(predicted: Predict, questions: Path, tiny_glm: Path) -> None:
    lines = predicted()
    glm = glm_lightning.load(tiny_glm)
    for number, (line, text) in enumerate(zip(lines, QUESTIONS, strict=True)):
        assert line["origin"] == f"{questions}:{number + 1}"
        assert line["row"] == {"instruction": text, "id": number}
        assert line["answer"] == glm.generate([{"role": "user", "content": text}], max_new_tokens=8)
        assert line["finished"] in (True, False)
        assert "reference" not in line


def test_what_is_sampled_does_not_depend_on_the_batches(predicted: Predict) -> None:
    sampling = ("--temperature", "1.2", "--top-p", "0.95", "--seed", "5")
    one, three, all_at_once = (
        predicted(*sampling, "--batch-size", str(size), out=f"{size}.jsonl") for size in (1, 3, 100)
    )
    assert one == three == all_at_once
    assert one != predicted(*sampling[:-1], "6", out="other.jsonl")


def test_several_answers_to_a_row(predicted: Predict) -> None:
    lines = predicted("-n", "3", "--temperature", "1.2")
    assert [(line["row"]["id"], line["sample"]) for line in lines] == [(i, j) for i in range(7) for j in range(3)]
    single = predicted("--temperature", "1.2", out="single.jsonl")
    assert [line["answer"] for line in lines[::3]] == [line["answer"] for line in single]
    assert len({line["answer"] for line in lines[:3]}) > 1


def test_a_rows_own_answer_comes_as_the_reference(predicted: Predict, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("question,answer\n你好,您好\nwho,\n", encoding="utf-8")
    lines = predicted(rows=rows)
    assert [line.get("reference") for line in lines] == ["您好", None]


def test_what_is_there_is_not_overwritten(predicted: Predict, tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="is there already; name another one, or say --overwrite"):
        predicted()
    assert (tmp_path / "out.jsonl").read_text(encoding="utf-8") == "mine"
    assert len(predicted("--overwrite")) == 7


def test_mistakes_are_told_at_once_before_a_model_is_loaded(
    predicted: Predict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict.given, "loaded", lambda *_: pytest.fail("a model is loaded"))
    (tmp_path / "out.jsonl").write_text("mine", encoding="utf-8")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "q"}\n{"instruction": 3}\n', encoding="utf-8")
    with pytest.raises(UserError) as caught:
        predicted("--temperature", "-1", rows=rows)
    expected = ("temperature is", "--out is", "rows.jsonl:2", "--skip-bad-rows")
    assert all(what in told for what, told in zip(expected, caught.value.problems, strict=True))


def test_bad_rows_can_be_left_out(predicted: Predict, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "q"}\n{"instruction": 3}\n{"instruction": "r"}\n', encoding="utf-8")
    lines = predicted("--skip-bad-rows", rows=rows)
    assert [line["row"]["instruction"] for line in lines] == ["q", "r"]
    assert "left out: " in capsys.readouterr().err


def test_a_part_of_other_answers_is_not_gone_on_with(predicted: Predict, tmp_path: Path) -> None:
    part = tmp_path / "out.jsonl.part"
    part.write_text('{"key": "of something else"}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"out\.jsonl\.part: was begun with another model"):
        predicted()


def test_killed_and_gone_on_with_is_as_never_killed(
    tmp_path: Path, tiny_glm: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def arguments(out: str) -> list[str]:
        answers = ("--max-new-tokens", "40", "--temperature", "1", "--batch-size", "3", "--dtype", "float32")
        return [str(tiny_glm), str(rows), "--out", str(tmp_path / out), *answers]

    process = PROCESSES.Process(target=predict.main, args=(arguments("killed.jsonl"),))
    process.start()
    part = tmp_path / "killed.jsonl.part"
    deadline = time.monotonic() + 120
    while not part.exists() or part.read_bytes().count(b"\n") < 3:  # two batches of sixteen
        assert time.monotonic() < deadline
        assert process.is_alive()
        time.sleep(0.005)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "killed.jsonl").exists()
    assert part.read_bytes().count(b"\n") < 17  # it was killed on the way
    predict.main(arguments("killed.jsonl"))
    assert "were there from an earlier call" in capsys.readouterr().err
    predict.main(arguments("whole.jsonl"))
    assert "were there from an earlier call" not in capsys.readouterr().err
    assert (tmp_path / "killed.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert len((tmp_path / "whole.jsonl").read_bytes().splitlines()) == 48
    assert not part.exists()
