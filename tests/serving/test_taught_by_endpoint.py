"""A teacher behind an endpoint: what our own server says is what the model says, and what another model then learns."""

import json
from pathlib import Path

import pytest
from servers import Running

import glm_lightning
from glm_lightning import demo
from glm_lightning.inference import predict


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    rows = (Path(demo.__file__).parent / "data" / "plain" / "val.jsonl").read_text(encoding="utf-8").splitlines()[:8]
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(rows), encoding="utf-8")
    return path


def test_a_student_learns_what_an_endpoint_says(server: Running, questions: Path, tmp_path: Path) -> None:
    answers, here = tmp_path / "answers.jsonl", tmp_path / "here.jsonl"
    predict.main([f"{server.url}/v1", str(questions), "--out", str(answers), "--max-new-tokens", "40"])
    predict.main(["demo", str(questions), "--out", str(here), "--max-new-tokens", "40", "--device", "cpu"])
    assert answers.read_bytes() == here.read_bytes()
    given = [
        "objective=sft",
        "model=demo_student",
        "method=full",
        "data=auto",
        f"data.train={answers}",
        "data.val=null",
    ]
    small = ["trainer.log_every_n_steps=1", "trainer.max_epochs=3", "data.batch_size=8", f"run_dir={tmp_path / 'run'}"]
    run = glm_lightning.train([*given, *small, f"data.cache_dir={tmp_path / 'cache'}"])
    learned = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    losses = [row["train/loss"] for row in learned if "train/loss" in row]
    assert losses[-1] < losses[0]
    assert len(losses) == 3
