"""An exported folder in EleutherAI's lm-evaluation-harness, unchanged, with tasks of one's own."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

import glm_lightning
from glm_lightning import cli
from glm_lightning.runs import RunFolder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm_eval is not installed"),
]

QUESTIONS = ["who are you", "裙子的材质", "the quick brown fox", "你好"]
CHOICES = [["a fox", "an assistant"], ["棉", "简约"], ["jumps", "sits"], ["你是谁", "the dog"]]


@pytest.fixture
def exported(train: Callable[..., RunFolder], tmp_path: Path) -> Path:
    """A LoRA run as a folder for others."""
    run = train("run", "trainer.max_steps=1", "trainer.precision=32-true")
    folder = tmp_path / "exported"
    assert cli.main(["export", str(run.path), str(folder)]) == 0
    return folder


def measured(folder: Path, tasks: Path, *more: str) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """Results and samples by task."""
    names = ",".join(file.stem for file in tasks.glob("*.yaml"))
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--device", "cpu", "--batch_size", "2"]
    command += ["--model_args", f"pretrained={folder},dtype=float32", "--tasks", names, "--include_path", str(tasks)]
    command += ["--output_path", str(tasks / "out"), "--log_samples", *more]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tasks / "hf")}
    own = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}  # nothing of ours is there
    done = subprocess.run(command, env=own | offline, cwd=tasks, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(next(tasks.glob("out/*/results_*.json")).read_text(encoding="utf-8"))["results"]
    samples = {name: read(next(tasks.glob(f"out/*/samples_{name}_*.jsonl"))) for name in names.split(",")}
    return results, samples


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def task(folder: Path, name: str, rows: list[dict[str, Any]], **settings: Any) -> None:
    """Write a task with its rows."""
    folder.mkdir(exist_ok=True)
    data = folder / f"{name}.jsonl"
    data.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    own = {"task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}}
    text = yaml.safe_dump(own | {"test_split": "test", "doc_to_text": "{{question}}"} | settings, allow_unicode=True)
    (folder / f"{name}.yaml").write_text(text, encoding="utf-8")


@torch.no_grad()
def likelihood(folder: Path, context: str, continuation: str) -> float:
    """Of a continuation behind a space, by plain transformers."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    start = len(tokenizer(context)["input_ids"])
    ids = tokenizer(f"{context} {continuation}", return_tensors="pt")["input_ids"]
    logs = network(ids).logits.log_softmax(-1)[0, start - 1 : -1]
    return float(logs.gather(1, ids[0, start:, None]).sum())


def test_likelihoods_and_answers_are_those_of_the_run(exported: Path, tmp_path: Path) -> None:
    tasks = tmp_path / "tasks"
    rows = [{"question": q, "choices": c, "gold": 1} for q, c in zip(QUESTIONS, CHOICES, strict=True)]
    metric = [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]
    choice = {"doc_to_choice": "{{choices}}", "doc_to_target": "{{gold}}", "metric_list": metric}
    task(tasks, "own_choice", rows, output_type="multiple_choice", **choice)
    results, samples = measured(exported, tasks)
    right = []
    for sample, row in zip(samples["own_choice"], rows, strict=True):
        expected = [likelihood(exported, row["question"], each) for each in row["choices"]]
        found = [float(response[0][0]) for response in sample["resps"]]
        assert found == pytest.approx(expected, abs=1e-3)
        right.append(expected[1] > expected[0])
    assert results["own_choice"]["acc,none"] == sum(right) / len(right)


def test_answers_through_the_folders_own_chat_template(exported: Path, tmp_path: Path) -> None:
    tasks = tmp_path / "tasks"
    glm = glm_lightning.load(exported, dtype="float32")
    answers = [glm.generate([{"role": "user", "content": question}], max_new_tokens=12) for question in QUESTIONS]
    assert all(answer.strip() for answer in answers)
    rows = [{"question": question, "answer": answer} for question, answer in zip(QUESTIONS, answers, strict=True)]
    rows[0]["answer"] = "something else"
    metric = [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]
    how = {"doc_to_target": "{{answer}}", "generation_kwargs": {"until": [], "max_gen_toks": 12, "do_sample": False}}
    task(tasks, "own_answers", rows, output_type="generate_until", metric_list=metric, **how)
    results, samples = measured(exported, tasks, "--apply_chat_template")
    said = [sample["resps"][0][0].strip() for sample in samples["own_answers"]]
    assert said == [answer.strip() for answer in answers]
    assert results["own_answers"]["exact_match,none"] == 0.75
