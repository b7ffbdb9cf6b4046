"""Whole runs of every objective of conf/objective/, on a random tiny GLM."""

from __future__ import annotations

import json
import random
import re
import shlex

import pytest
import torch
from tiny_runs import dying, largest_difference, weights

import glm_lightning
from glm_lightning import cli, config
from glm_lightning.runs import RunFolder
from glm_lightning.types import UserError

WORDS = ["the", "quick", "brown", "fox", "裙", "材质", "棉", "风格", "简约", "你好", "who", "are", "you"]
KINDS = (
    "pretrain",
    "preference",
    "preference-cached",
    "preference-simpo",
    "distill",
    "distill-top_k",
    "distill-hidden",
    "distill-on_policy",
)
CHEAP = ("pretrain", "preference", "distill-top_k")
CASES = [pytest.param(kind, marks=() if kind in CHEAP else pytest.mark.slow) for kind in KINDS]


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Files of texts and of pairs."""
    folder, rng = tmp_path_factory.mktemp("others"), random.Random(0)

    def text(most):
        return " ".join(rng.choices(WORDS, k=rng.randint(1, most)))

    texts = [{"text": text(60)} for _ in range(48)]
    pairs = [{"prompt": text(8), "chosen": f"{text(20)} a", "rejected": f"{text(12)} b"} for _ in range(48)]
    for name, rows in (("texts", texts), ("pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


@pytest.fixture
def knobs_of(others, tiny_glm):
    """What tells a run to follow an objective."""
    teacher = [f"objective.teacher={tiny_glm}", "objective.teacher_dtype=float64", "model.num_layers=1"]
    pairs = ["objective=preference", f"data.train={others / 'pairs.jsonl'}"]
    every = {
        "pretrain": ["objective=pretrain", f"data.train={others / 'texts.jsonl'}", "data.max_length=64"],
        "preference": pairs,
        "preference-cached": [*pairs, "objective.reference=cached"],
        "preference-simpo": [*pairs, "objective.variant=simpo", "objective.beta=2.0"],
        "distill": ["objective=distill", *teacher],
        "distill-top_k": ["objective=distill", *teacher, "objective.top_k=8", "objective.top_k_dtype=float32"],
        "distill-hidden": ["objective=distill", *teacher, "objective.hidden_states=0.5"],
        "distill-on_policy": ["objective=distill", *teacher, "objective.on_policy=0.5", "objective.on_policy_tokens=8"],
    }
    formats = {"pretrain": "data=text", "preference": "data=preference", "distill": "data=messages"}
    return lambda kind: [formats[kind.partition("-")[0]], *every[kind]]


@pytest.fixture
def learn(knobs_of, overrides, tmp_path):
    """Run an objective in this process."""

    def run(name, kind, *more):
        plain = [each for each in overrides(name) if not each.startswith(("data=", "data.train="))]
        rows = [each for each in overrides(name) if each.startswith("data.train=")] if "distill" in kind else []
        # without a head start of the base, P-tuning's and others' first steps are noise
        glm_lightning.train([*plain, *rows, *knobs_of(kind), *more])
        return RunFolder(tmp_path / name)

    return run


def curve(run, name):
    lines = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    return [line[name] for line in lines if name in line]


@pytest.mark.parametrize("kind", CASES)
def test_eight_at_once_are_eight_times_one_and_learn(learn, kind):
    knobs = ("trainer.max_steps=4", "optimizer.lr=1e-2")
    whole = learn("whole", kind, *knobs, "trainer.accumulate_grad_batches=1", "data.max_tokens=8192")
    single = learn("single", kind, *knobs, "trainer.accumulate_grad_batches=8")
    assert largest_difference(weights(whole), weights(single)) < 1e-10
    assert curve(whole, "train/loss") == pytest.approx(curve(single, "train/loss"), rel=1e-6)
    report = whole.read_report()
    assert report["metrics"]["val/loss"] < report["before"]["val/loss"]


@pytest.mark.parametrize("kind", CASES[:-1])  # the last one's rows are written anew
def test_packed_rows_are_the_same_rows(learn, kind):
    knobs = ("trainer.max_steps=2", "data.max_tokens=8192")
    runs = [learn(f"packed-{packed}", kind, *knobs, f"data.packing={packed}") for packed in ("true", "false")]
    assert largest_difference(*map(weights, runs)) < 1e-10


@pytest.mark.parametrize("kind", CASES)
def test_resumed_is_uninterrupted_to_the_last_bit(learn, kind, tmp_path):
    knobs = (
        "callbacks.checkpoints.every_n_steps=1", "trainer.max_steps=5", "trainer.accumulate_grad_batches=2",
        "data.max_tokens=8192",
    )  # fmt: skip
    whole = learn("whole", kind, *knobs)
    with dying(3):
        learn("broken", kind, *knobs)
    resumed = RunFolder(glm_lightning.train([f"resume={tmp_path / 'broken'}"]).path)
    expected, got = weights(whole), weights(resumed)
    assert all(torch.equal(expected[name], got[name]) for name in expected)


@pytest.mark.parametrize("method", ["lora", pytest.param("full", marks=pytest.mark.slow)])
def test_a_reference_on_disk_is_the_live_one(learn, method):
    runs = [
        learn(reference, "preference", f"method={method}", "trainer.max_steps=3", f"objective.reference={reference}")
        for reference in (("live", "cached") if method == "lora" else ("auto", "cached"))
    ]
    assert largest_difference(*map(weights, runs)) < 1e-10


def test_a_full_method_resumes_with_the_reference_it_began_with(learn, tmp_path):
    """The second part of a run finds the reference on disk, and where that is lost, asks the base and not itself."""
    import shutil

    knobs = ("method=full", "trainer.max_epochs=2", "trainer.max_steps=-1")
    whole = learn("whole", "preference", *knobs)
    learn("half", "preference", *knobs, "trainer.max_epochs=1", "scheduler=constant")
    constant = learn("constant", "preference", *knobs, "scheduler=constant")
    shutil.rmtree(tmp_path / "cache" / "ahead")
    resumed = glm_lightning.train([f"resume={tmp_path / 'half'}", "trainer.max_epochs=2"])
    assert largest_difference(weights(constant), weights(RunFolder(resumed.path))) < 1e-8
    assert whole.path != constant.path


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_are_one(learn, overrides, knobs_of, kind, tmp_path, train_py):
    knobs = ("trainer.max_steps=3", "data.max_tokens=8192")
    one = learn("one", kind, *knobs, "trainer.accumulate_grad_batches=8")
    plain = [each for each in overrides("two") if not each.startswith(("data=", "data.train="))]
    rows = [each for each in overrides("two") if each.startswith("data.train=")] if "distill" in kind else []
    two = train_py_of(tmp_path, [*plain, *rows, *knobs_of(kind), *knobs, "trainer=ddp_cpu"])
    assert largest_difference(weights(one), weights(two)) < 1e-10


def train_py_of(folder, arguments):
    import os
    import subprocess
    import sys

    from tiny_runs import ROOT

    command = [sys.executable, str(ROOT / "train.py"), *arguments, "trainer.accumulate_grad_batches=4"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=os.environ, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return RunFolder(folder / "two")


def test_pairs_are_measured_in_training_and_validation(learn):
    run = learn("run", "preference", "trainer.max_steps=2")
    for name in ("accuracy", "margin", "reward_chosen", "reward_rejected"):
        assert curve(run, f"train/{name}")
        assert f"val/{name}" in run.read_report()["metrics"]


def test_rows_of_another_kind_are_refused_with_the_objective_that_learns_them(overrides, others):
    plain = [each for each in overrides("refused") if not each.startswith(("data=", "data.train="))]
    for objective, file, advice in (
        ("sft", "texts", "objective=pretrain"),
        ("sft", "pairs", "objective=preference"),
        ("pretrain", "pairs", "objective=preference"),
        ("preference", "texts", "objective=pretrain"),
    ):
        arguments = [*plain, f"objective={objective}", "data=auto", f"data.train={others / file}.jsonl"]
        with pytest.raises(UserError, match=rf"{file}\.jsonl: its rows .* {advice}"):
            glm_lightning.train(arguments)


def test_a_teacher_with_other_tokens_is_refused(overrides, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="its tokenizer is another one") as caught:
        glm_lightning.train(overrides("refused", "objective=distill", "objective.teacher=demo"))
    # the way out is two commands that work
    found = re.search(r"glm (predict demo .*?), then python train.py (.*) and the rest as it is", str(caught.value))
    assert found is not None
    monkeypatch.chdir(tmp_path)
    assert cli.main([*shlex.split(found[1]), "--max-new-tokens", "4", "--device", "cpu"]) == 0
    glm_lightning.train([*overrides("learned"), *shlex.split(found[2]), "trainer.max_steps=1"])


def test_a_teacher_that_is_the_student_is_told(overrides, train):
    run = train("run", "objective=distill", "trainer.max_steps=1")
    assert any("the teacher is the student as it begins" in notice for notice in run.read_report()["notices"])
    run = train("part", "objective=distill", "model.num_layers=1", "trainer.max_steps=1")
    assert not any("the teacher is" in notice for notice in run.read_report()["notices"])


def test_an_endpoint_as_a_live_teacher_is_refused_with_what_works(overrides):
    given = overrides("refused", "objective=distill", "objective.teacher=http://localhost:8000/v1")
    with pytest.raises(UserError, match=r"an endpoint tells what it says.* glm predict http://localhost:8000/v1 "):
        glm_lightning.train(given)


def test_every_objective_says_what_it_measures():
    for name in ("sft", "pretrain", "preference", "distill"):
        node = config.compose([f"objective={name}"])
        assert node.objective._target_.startswith("glm_lightning.objectives.")
