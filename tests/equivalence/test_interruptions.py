"""Signals, full disks, torn and foreign checkpoints, no memory: said in words, and resumed to the last bit."""

import errno
import os
import re
import shutil
import signal
from types import SimpleNamespace

import pytest
import torch
from lightning.fabric.plugins.environments import SLURMEnvironment
from tiny_runs import weights

import glm_lightning
from glm_lightning.callbacks import signals
from glm_lightning.data import encoding
from glm_lightning.methods.base import Method
from glm_lightning.objectives.sft import SFT
from glm_lightning.runs import RunFolder
from glm_lightning.runs import checkpoints as on_disk
from glm_lightning.types import UserError

KNOBS = (
    "method.dropout=0.2", "trainer.max_steps=6", "trainer.precision=32-true", "trainer.accumulate_grad_batches=2",
    "trainer.val_check_interval=0.4", "callbacks.checkpoints.every_n_steps=null",
)  # fmt: skip


def assert_equal(expected, got):
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def resumed(folder, *more):
    return RunFolder(glm_lightning.train([f"resume={folder}", *more]).path)


def steps_of(path):
    return on_disk.SafeCheckpoints().load_checkpoint(path)["global_step"]


@pytest.fixture
def at_step(monkeypatch):
    """Call a function in the first micro-batch of a step."""
    original = Method.training_step

    def arrange(step, function):
        def training_step(self, batch, batch_idx):
            if self.trainer.global_step == step - 1 and batch_idx % 2 == 0:
                function()
            return original(self, batch, batch_idx)

        monkeypatch.setattr(Method, "training_step", training_step)

    return arrange


@pytest.fixture
def whole(train):
    return train("whole", *KNOBS)


# steps 2, 4 and 5 are validated, 5 ends the epoch
@pytest.mark.parametrize("step", [3, 4, 5])
def test_sigterm_writes_a_checkpoint_first(train, whole, tmp_path, at_step, monkeypatch, capsys, step):
    at_step(step, lambda: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught:
        train("broken", *KNOBS)
    assert caught.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before
    assert f"resume={tmp_path / 'broken'}" in capsys.readouterr().out
    broken = RunFolder(tmp_path / "broken")
    assert steps_of(broken.last) == step  # finished, though the signal came in its first micro-batch
    monkeypatch.undo()
    after = resumed(broken.path)
    assert_equal(weights(whole), weights(after))
    assert after.read_report()["metrics"] == whole.read_report()["metrics"]


def test_slurms_signal_puts_the_job_back_behind_a_checkpoint(train, tmp_path, at_step, monkeypatch):
    environment = object.__new__(SLURMEnvironment)
    environment.auto_requeue, environment.requeue_signal = True, signal.SIGUSR1
    monkeypatch.setattr(signals, "_slurm", lambda trainer: environment)
    last, calls = tmp_path / "job" / "checkpoints" / "last", []
    run = SimpleNamespace(run=lambda command, check: calls.append((command, last.is_dir())))
    monkeypatch.setattr(signals, "subprocess", run)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    at_step(3, lambda: os.kill(os.getpid(), signal.SIGUSR1))
    usr1 = signal.getsignal(signal.SIGUSR1)
    with pytest.raises(SystemExit):
        train("job", *KNOBS)
    assert calls == [(["scontrol", "requeue", "17"], True)]
    assert steps_of(last) == 3
    assert signal.getsignal(signal.SIGUSR1) == usr1


def test_a_full_disk_leaves_the_checkpoint_before(train, whole, tmp_path, monkeypatch):
    save, calls = on_disk.save_file, []

    def full(tensors, file):
        calls.append(file)
        if len(calls) > 6:
            raise OSError(errno.ENOSPC, "No space left on device", str(file))
        save(tensors, file)

    monkeypatch.setattr(on_disk, "save_file", full)
    with pytest.raises(UserError, match=r"No space left on device.*MiB free; the checkpoint before it is whole"):
        train("full", *KNOBS, "callbacks.checkpoints.every_n_steps=1")
    monkeypatch.undo()
    full = RunFolder(tmp_path / "full")
    assert steps_of(full.last) >= 1
    assert not list(full.last.parent.glob(".*"))
    assert_equal(weights(whole), weights(resumed(full.path)))


def test_a_full_disk_of_the_metrics_is_named(train, monkeypatch):
    from glm_lightning.callbacks import JsonLines

    def full(self, metrics, step=None):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(JsonLines, "log_metrics", full)
    with pytest.raises(UserError, match=r"No space left on device: the disk of .* MiB free; make room, .*resume="):
        train("full", *KNOBS)


@pytest.fixture
def stopped(train, at_step, monkeypatch, tmp_path):
    """A run that ended behind its fifth step, with the checkpoints of steps 4 and 5."""
    at_step(5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit):
        train("stopped", *KNOBS, "callbacks.checkpoints.every_n_steps=1", "trainer.val_check_interval=1.0")
    monkeypatch.undo()
    return RunFolder(tmp_path / "stopped")


@pytest.mark.parametrize("damage", ["cut", "foreign", "other method"])
def test_the_checkpoint_before_a_torn_or_foreign_one_is_used(train, stopped, damage):
    last, previous = stopped.last, stopped.last.with_name("previous")
    shutil.rmtree(stopped.best)
    assert (steps_of(previous), steps_of(last)) == (4, 5)
    if damage == "cut":
        tensors = last / "optimizer.safetensors"
        tensors.write_bytes(tensors.read_bytes()[:-7])
        words = "last: not a whole checkpoint of glm_lightning"
    else:
        stored = on_disk.SafeCheckpoints().load_checkpoint(last)
        changes = {"base": "another"} if damage == "foreign" else {"method": "Full"}
        on_disk.SafeCheckpoints().save_checkpoint(stored | changes, last)
        words = "last: made on base another" if damage == "foreign" else "last: made by the method Full"
    after = resumed(stopped.path)
    expected = train("expected", *KNOBS, "trainer.val_check_interval=1.0")
    assert_equal(weights(expected), weights(after))
    notices = [notice for notice in after.read_report()["notices"] if words in notice]
    assert [notice.endswith(f"went on from {previous}") for notice in notices] == [True]
    assert stopped.refused.is_dir()


def test_where_no_checkpoint_will_do_all_of_them_are_named(stopped):
    for path in stopped.last.parent.iterdir():
        (path / "trained.safetensors").write_bytes(b"")
    with pytest.raises(UserError) as caught:
        glm_lightning.train([f"resume={stopped.path}"])
    assert [problem.partition(":")[0].rpartition("/")[2] for problem in caught.value.problems] == [
        "last", "previous", "best",
    ]  # fmt: skip


def test_another_base_is_refused(stopped, tiny_glm, tmp_path):
    from safetensors.torch import load_file, save_file

    other = tmp_path / "other"
    shutil.copytree(tiny_glm, other)
    changed = load_file(other / "model.safetensors")
    changed["model.norm.weight"] += 1
    save_file(changed, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="give the base model that the run was started with"):
        glm_lightning.train([f"resume={stopped.path}", f"model.path={other}"])


def test_what_crashes_have_left_is_swept(stopped):
    (stopped.last.parent / ".last.123.part").mkdir()
    stopped.last.rename(stopped.last.with_name(".last.old"))
    after = resumed(stopped.path)
    assert not list(after.last.parent.glob(".*"))
    assert steps_of(after.last) == 6


def test_a_new_release_goes_on_with_the_same_samples(stopped, monkeypatch):
    """Another version of the code has another cache key; what it encodes is what counts."""
    monkeypatch.setattr(encoding, "VERSION", encoding.VERSION + 1)
    assert resumed(stopped.path).read_report()["steps"] == 6


def test_a_release_that_encodes_otherwise_does_not(stopped, monkeypatch):
    finished = encoding.Encoder._finished

    def other(self, view, pieces):
        sample = finished(self, view, pieces)
        sample.learned[-2] = not sample.learned[-2]
        return sample

    monkeypatch.setattr(encoding, "VERSION", encoding.VERSION + 1)
    monkeypatch.setattr(encoding.Encoder, "_finished", other)
    with pytest.raises(UserError, match=r"data\.data: the checkpoint was made with"):
        resumed(stopped.path, "data.num_workers=0")


def test_a_configuration_of_an_older_release_takes_the_defaults_of_this_one(stopped):
    lines = stopped.config.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith("on_non_finite")]
    assert len(kept) == len(lines) - 1
    stopped.config.write_text("".join(kept), encoding="utf-8")
    assert resumed(stopped.path).read_report()["steps"] == 6


OUT = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "cpu": RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried"),
    "python": MemoryError(),
}


@pytest.mark.parametrize("kind", OUT)
def test_out_of_memory_names_what_to_change(train, monkeypatch, kind):
    original = SFT.loss

    def loss(self, network, batch):
        # the estimate asks for a loss of tensors without contents
        if network.training and type(batch.input_ids) is torch.Tensor:
            raise OUT[kind]
        return original(self, network, batch)

    monkeypatch.setattr(SFT, "loss", loss)
    with pytest.raises(UserError) as caught:
        train("out", "method=full", "data.max_tokens=1024", "data.max_length=256")
    happened, memory, advice = caught.value.problems
    assert "out of memory at step 1 in a micro-batch of" in happened
    assert "131,648 parameters, 131,648 of them trained" in memory
    assert "GiB" in memory
    for change in ("data.max_tokens=512", "model.gradient_checkpointing=true", "data.max_length=128", "method=lora"):
        assert change in advice
    assert len(re.findall(r"tensors would take about [\d,.]+ MiB instead of [\d,.]+ MiB", advice)) == 2


def test_out_of_memory_while_answering_names_its_own_knob(train, monkeypatch):
    from glm_lightning import evaluation

    def score(*args, **kwargs):
        raise OUT["cuda"]

    monkeypatch.setattr(evaluation, "score", score)
    with pytest.raises(UserError, match=r"evaluation\.batch_size=16 \(now 32\)"):
        train("out", "data.test=4")


def test_other_errors_stay_what_they_are(train, monkeypatch):
    def loss(self, network, batch):
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(SFT, "loss", loss)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        train("broken")
