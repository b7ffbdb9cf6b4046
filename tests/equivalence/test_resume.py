"""A run that was killed and resumed ends where an uninterrupted one does, to the last bit."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from tiny_runs import ROOT, dying, largest_difference, weights

from glm_lightning.types import UserError

KNOBS = (
    "callbacks.checkpoints.every_n_steps=1",
    "method.dropout=0.2",
    "trainer.max_steps=-1",
    "trainer.precision=32-true",
)


# 40 training rows in steps of 8 are 5 steps an epoch: in the middle of an epoch, at its end, in the second epoch
@pytest.mark.parametrize("step", [2, 5, 6, 9])
def test_resumed_equals_uninterrupted(train, tmp_path, step):
    import glm_lightning

    knobs = (*KNOBS, "trainer.accumulate_grad_batches=2", "trainer.val_check_interval=0.4")
    whole = train("whole", *knobs)
    with dying(step):
        train("broken", *knobs)
    resumed = glm_lightning.train([f"resume={tmp_path / 'broken'}"])
    expected, got = weights(whole), weights(type(whole)(resumed.path))
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert resumed.metrics == pytest.approx(whole.read_report()["metrics"], abs=0)


def test_killed_in_the_middle_of_an_epoch(train_py, overrides, tmp_path):
    whole = train_py("whole", *KNOBS)
    command = [sys.executable, str(ROOT / "train.py"), *overrides("killed", *KNOBS)]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    killed = type(whole)(tmp_path / "killed")
    deadline = time.monotonic() + 120
    while not killed.last.is_dir() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert killed.last.is_dir()
    assert not killed.finished
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), f"resume={killed.path}"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    expected, got = weights(whole), weights(killed)
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_auto_finds_the_unfinished_run_of_the_same_settings(overrides, tmp_path):
    import glm_lightning

    def arguments(*more):
        kept = [override for override in overrides("unused", *KNOBS) if not override.startswith("run_dir=")]
        return [*kept, f"outputs={tmp_path / 'outputs'}", "trainer.accumulate_grad_batches=2", *more]

    with dying(2):
        glm_lightning.train(arguments())
    (broken,) = (tmp_path / "outputs").iterdir()
    assert glm_lightning.train(arguments("resume=auto")).path == broken
    # now it is finished, so the same settings start a run of their own
    assert glm_lightning.train(arguments("resume=auto", "name=second")).path != broken


def test_a_finished_run_says_how_to_go_on(train, tmp_path):
    import glm_lightning

    train("done", "trainer.max_steps=-1", "trainer.max_epochs=1")
    with pytest.raises(UserError, match=r"finished; .* trainer\.max_epochs=2"):
        glm_lightning.train([f"resume={tmp_path / 'done'}"])
    longer = glm_lightning.train([f"resume={tmp_path / 'done'}", "trainer.max_epochs=2"])
    assert longer.config.trainer.max_epochs == 2
    with pytest.raises(UserError, match="keeps its method"):
        glm_lightning.train([f"resume={tmp_path / 'done'}", "method=full"])


@pytest.mark.parametrize("change", ["quantize=int8", "model.quantize=nf4", "rates.large=1e-3"])
def test_what_was_settled_at_the_start_cannot_change(train, change):
    import glm_lightning

    run = train("short", "trainer.max_steps=2")
    with pytest.raises(UserError, match="is settled when a run begins"):
        glm_lightning.train([f"resume={run.path}", "trainer.max_steps=4", change])


def test_a_foreign_checkpoint_is_refused_by_name(train, tmp_path, tiny_glm, monkeypatch):
    import glm_lightning

    run = train("narrow", "trainer.max_steps=-1", "trainer.max_epochs=1", "method.rank=4")
    with pytest.raises(UserError) as caught:
        glm_lightning.train([f"resume={run.path}", "trainer.max_epochs=2", "method.rank=8"])
    assert any("has shape" in problem and "lora_A" in problem for problem in caught.value.problems)


def test_a_run_that_ended_between_two_validations_goes_on_exactly(train, tmp_path):
    import glm_lightning

    knobs = ("scheduler=constant", "trainer.precision=32-true")
    whole = train("whole", *knobs, "trainer.max_steps=7")
    train("short", *knobs, "trainer.max_steps=3")
    longer = glm_lightning.train([f"resume={tmp_path / 'short'}", "trainer.max_steps=7"])
    expected, got = weights(whole), weights(type(whole)(longer.path))
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_the_last_steps_count_though_no_validation_has_seen_them(train):
    # five steps are an epoch: the best checkpoint is from step 5, and step 7 is better
    run = train("seven", "trainer.max_steps=7")
    lines = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    at_five = next(line["val/loss"] for line in lines if line["step"] == 5 and "val/loss" in line)
    assert run.read_report()["metrics"]["val/loss"] < at_five


def test_another_split_goes_on_with_the_same_rows(train, tmp_path):
    import glm_lightning

    knobs = ("callbacks.checkpoints.every_n_steps=1", "trainer.max_steps=-1", "trainer.accumulate_grad_batches=2")
    whole = train("whole", *knobs)
    with dying(3):
        train("broken", *knobs)
    resumed = glm_lightning.train([f"resume={tmp_path / 'broken'}", "trainer.accumulate_grad_batches=4"])
    assert largest_difference(weights(whole), weights(type(whole)(resumed.path))) < 1e-10
    assert resumed.metrics == pytest.approx(whole.read_report()["metrics"], rel=1e-9)


def test_other_rows_are_refused(train, tmp_path, rows):
    import glm_lightning

    mine = tmp_path / "mine.jsonl"
    mine.write_bytes(rows.read_bytes())
    knobs = ("trainer.max_steps=-1", "trainer.max_epochs=1", f"data.train={mine}")
    run = train("first", *knobs)
    resume = [f"resume={run.path}", "trainer.max_epochs=2"]
    with pytest.raises(UserError, match=r"data\.batch_size: .* with 8, now it is 4"):
        glm_lightning.train([*resume, "data.batch_size=4"])
    mine.write_bytes(rows.read_bytes().replace(b"quick", b"quack", 1))
    with pytest.raises(UserError, match=r"data\.data: the checkpoint was made with"):
        glm_lightning.train(resume)


def test_a_moved_run_goes_on_where_it_lies_now(train, tmp_path):
    import glm_lightning

    run = train("here", "trainer.max_steps=-1", "trainer.max_epochs=1")
    there = run.path.rename(tmp_path / "there")
    assert glm_lightning.train([f"resume={there}", "trainer.max_epochs=2"]).path == there
    assert not run.path.exists()


def test_a_run_that_lost_only_its_report_keeps_what_it_measured_before(train):
    import glm_lightning

    run = train("run", "trainer.max_steps=2", "data.test=4", "evaluation.max_new_tokens=4")
    before = run.read_report()["before"]
    run.report.unlink()
    glm_lightning.train([f"resume={run.path}"])
    assert run.read_report()["before"] == before


def test_a_stored_configuration_calls_nothing_foreign(train):
    import glm_lightning

    run = train("run", "trainer.max_steps=2")
    text = run.config.read_text(encoding="utf-8")
    run.config.write_text(text.replace("glm_lightning.objectives.sft.SFT", "os.system"), encoding="utf-8")
    with pytest.raises(UserError, match=r"calls os\.system"):
        glm_lightning.train([f"resume={run.path}", "trainer.max_steps=3"])


def test_a_run_that_early_stopping_has_ended_stays_ended(train):
    import glm_lightning

    knobs = ("trainer.max_steps=-1", "trainer.max_epochs=50", "optimizer.lr=1.0", "callbacks.early_stopping.patience=1")
    run = train("run", *knobs)
    steps = run.read_report()["steps"]
    assert steps < 250
    run.report.unlink()
    glm_lightning.train([f"resume={run.path}"])
    assert run.read_report()["steps"] == steps


def test_the_examination_at_the_end_is_on_the_device(train, monkeypatch):
    """Lightning moves the network to the CPU before on_fit_end; the last examination must move it back."""
    from lightning.pytorch.strategies import SingleDeviceStrategy

    from glm_lightning.training.examination import Examination

    calls = []
    monkeypatch.setattr(SingleDeviceStrategy, "model_to_device", lambda self: calls.append("to device"))
    monkeypatch.setattr(SingleDeviceStrategy, "teardown", lambda self: calls.append("to cpu"))
    original = Examination._measure
    monkeypatch.setattr(Examination, "_measure", lambda *a: calls.append("measure") or original(*a))
    train("run", "trainer.max_steps=2")
    assert calls == ["to device", "measure", "to cpu", "to device", "measure"]
