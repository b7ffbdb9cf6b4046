"""What torchrun and SLURM start: numbers that do not fit are refused, and what they start anew goes on."""

import pytest
import torch
from tiny_runs import dying, weights

import glm_lightning
from glm_lightning.runs import RunFolder
from glm_lightning.types import UserError

MISSING = "data.train=/nowhere.jsonl"
TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0",
    "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511",
}  # fmt: skip
SLURM = {
    "SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1", "SLURM_NNODES": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0", "SLURM_JOB_ID": "17", "SLURM_JOB_NAME": "tune",
}  # fmt: skip
NODES = {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "2"}


@pytest.fixture
def started_by(monkeypatch):
    """Let the environment be what a launcher makes."""

    def be(variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return be


def problems(overrides, *knobs):
    with pytest.raises(UserError) as caught:
        glm_lightning.train(overrides("refused", MISSING, *knobs))
    return [problem for problem in caught.value.problems if "nowhere" not in problem]


def test_several_machines_need_a_launcher(overrides):
    (problem,) = problems(overrides, "trainer=ddp_cpu", "trainer.num_nodes=2", "trainer.devices=4")
    assert problem.startswith("trainer.num_nodes is 2: nobody has started this on other machines")
    assert "torchrun --nnodes=2 --nproc-per-node=4 " in problem
    assert "srun --nodes=2 --ntasks-per-node=4 " in problem
    assert problem.count("run_dir=") == 2


@pytest.mark.parametrize(
    ("launcher", "knobs", "part"),
    [
        (TORCHRUN, ["trainer.devices=4"], "trainer.devices is 4: torchrun has started 2 process(es) a machine"),
        (TORCHRUN, ["trainer.num_nodes=3"], "trainer.num_nodes is 3: torchrun has started 2; use"),
        (SLURM, ["trainer.devices=2"], "trainer.devices is 2: SLURM has started 1 process(es) a machine"),
        (SLURM | NODES, ["trainer.num_nodes=1"], "trainer.num_nodes is 1: SLURM has started 2"),
        (TORCHRUN, ["run_dir=null"], "run_dir is null: ranks that torchrun starts must share one folder"),
        (TORCHRUN, ["run_dir=null", "resume=auto"], "run_dir is null: ranks that torchrun starts must share"),
    ],
)  # fmt: skip
def test_what_was_started_must_be_what_is_asked_for(overrides, started_by, launcher, knobs, part):
    started_by(launcher)
    (problem,) = problems(overrides, "trainer=ddp_cpu", *knobs)
    assert part in problem


def test_more_processes_than_devices_are_refused(overrides, started_by):
    """Where SLURM does not say how many there are on each machine."""
    started_by({**SLURM, "SLURM_NTASKS": "3", "SLURM_NNODES": "1", "SLURM_NTASKS_PER_NODE": "2"})
    with pytest.raises(
        UserError, match=r"2 device\(s\) on 1 machine\(s\) are 2 process\(es\), but 3 have been started"
    ):
        glm_lightning.train(overrides("refused", "trainer=ddp_cpu"))


@pytest.mark.parametrize("knobs", [[], ["run_dir=null"]], ids=["named", "unnamed"])
def test_a_job_that_slurm_puts_back_goes_on(overrides, started_by, tmp_path, knobs):
    def command(name):
        settings = ("trainer.max_steps=4", "trainer.accumulate_grad_batches=2", "method.dropout=0.2")
        saving = ("callbacks.checkpoints.every_n_steps=1", "trainer.precision=32-true", f"outputs={tmp_path / name}")
        return overrides(name, *settings, *saving, *knobs)

    started_by(SLURM)
    whole = glm_lightning.train(command("whole"))
    with dying(2):
        glm_lightning.train(command("broken"))
    started_by({"SLURM_RESTART_COUNT": "1"})
    resumed = glm_lightning.train(command("broken"))
    runs = [RunFolder(each.path) for each in (whole, resumed)]
    assert len(list(tmp_path.glob("broken/**/config.yaml"))) == 1
    assert all(torch.equal(one, other) for one, other in zip(*(weights(run).values() for run in runs), strict=True))
    assert resumed.metrics == whole.metrics
    if not knobs:  # once more when all is done
        assert glm_lightning.train(command("broken")).metrics == whole.metrics


def test_what_lies_in_run_dir_is_gone_on_with_only_if_it_is_the_same_run(overrides, train):
    train("run", "trainer.max_steps=2")
    with pytest.raises(UserError, match="a run of other settings lies there; give another run_dir"):
        glm_lightning.train(overrides("run", "trainer.max_steps=2", "resume=auto", "method.rank=4"))
    assert glm_lightning.train(overrides("run", "trainer.max_steps=2", "resume=auto")).metrics
