"""Two machines, played by two agents of torchrun (or two tasks of SLURM) over loopback."""

import os
import socket
import subprocess
import sys
import time

import psutil
import pytest
import torch
from tiny_runs import ROOT, largest_difference, weights

from glm_lightning.runs import RunFolder

KNOBS = ("trainer.accelerator=cpu", "trainer.devices=1", "trainer.accumulate_grad_batches=4")
SECONDS = 60.0
"""Within which both machines must have noticed that a rank is lost, and have started anew or ended."""


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture
def machines(tmp_path):
    """Start an agent for each of two machines with the same command; give them, those that still run are killed."""
    agents = []

    def start(arguments, *, restarts=0):
        launch = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-id=1"]
        launch += ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}", f"--max-restarts={restarts}"]
        command = [*launch, "--monitor-interval=0.1", "--local-addr=127.0.0.1", str(ROOT / "train.py"), *arguments]
        for number in range(2):
            with (tmp_path / f"machine.{number}.log").open("ab") as log:
                agent = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True)
            agents.append(agent)
        return agents[-2:]

    yield start
    for agent in agents:
        if agent.poll() is None:  # its worker is in a group of its own
            for process in [*psutil.Process(agent.pid).children(recursive=True), agent]:
                process.kill()
            agent.wait()


def ended_well(agents, tmp_path):
    codes = [agent.wait(timeout=200) for agent in agents]
    logs = [(tmp_path / f"machine.{number}.log").read_text(encoding="utf-8") for number in range(2)]
    assert codes == [0, 0], "\n".join(log[-3000:] for log in logs)
    return logs


def assert_equal(expected, got):
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def worker(agent):
    (child,) = [p for p in psutil.Process(agent.pid).children() if "train.py" in " ".join(p.cmdline())]
    return child


def wait_for(path, agents):
    deadline = time.monotonic() + 120
    while not path.exists() and all(agent.poll() is None for agent in agents) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert path.exists()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["auto", "fsdp"])
def test_two_machines_are_one(train, overrides, machines, tmp_path, strategy):
    knobs = ("data.test=5", "evaluation.max_new_tokens=4")
    one = train("one", *knobs, "trainer.accumulate_grad_batches=8")
    logs = ended_well(machines(overrides("two", *knobs, *KNOBS, f"trainer.strategy={strategy}")), tmp_path)
    two = RunFolder(tmp_path / "two")
    assert largest_difference(weights(one), weights(two)) < 1e-10
    assert two.read_report()["metrics"] == pytest.approx(one.read_report()["metrics"], rel=1e-9)
    assert sum("2 x CPU" in log for log in logs) == 1  # told once


# torch 2.13: an agent whose own worker failed counts a restart, one that only sees that others wait does not. Where one
# notices late, the new ranks look for each other under different counts and give up. Seen with the first machine.
RACE = pytest.mark.xfail(reason="torchrun's agents count restarts apart", strict=False)


@pytest.mark.slow
@pytest.mark.parametrize("lost", [pytest.param(0, marks=RACE), 1])
def test_a_lost_machine_is_started_anew_and_the_run_goes_on_exactly(overrides, machines, tmp_path, lost):
    knobs = (*KNOBS, "trainer.max_steps=30", "trainer.max_epochs=8", "trainer.precision=32-true", "method.dropout=0.2")
    knobs = (*knobs, "callbacks.checkpoints.every_n_steps=1")
    ended_well(machines(overrides("whole", *knobs)), tmp_path)
    broken = RunFolder(tmp_path / "broken")
    agents = machines(overrides("broken", *knobs), restarts=2)
    wait_for(broken.last, agents)
    worker(agents[lost]).kill()
    logs = ended_well(agents, tmp_path)
    assert any("resumed" in log for log in logs)
    assert_equal(weights(RunFolder(tmp_path / "whole")), weights(broken))
    assert broken.read_report()["metrics"] == RunFolder(tmp_path / "whole").read_report()["metrics"]


@pytest.mark.slow
def test_without_restarts_both_machines_end_soon(overrides, machines, tmp_path):
    agents = machines(overrides("lost", *KNOBS, "trainer.max_epochs=400", "trainer.max_steps=-1"))
    wait_for(RunFolder(tmp_path / "lost").metrics, agents)
    worker(agents[1]).kill()
    begun = time.monotonic()
    assert all(agent.wait(timeout=SECONDS) != 0 for agent in agents)
    assert time.monotonic() - begun < SECONDS
    log = (tmp_path / "machine.0.log").read_text(encoding="utf-8")
    assert "error: another rank is gone" in log
    assert f"resume={tmp_path / 'lost'}" in log


@pytest.mark.slow
def test_two_tasks_of_slurm_are_one_process(train, overrides, tmp_path):
    one = train("one", "trainer.accumulate_grad_batches=8")
    both = {
        "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1", "SLURM_NNODES": "2", "SLURM_LOCALID": "0",
        "SLURM_NODELIST": "127.0.0.1", "SLURM_JOB_ID": "17", "SLURM_JOB_NAME": "tune", "MASTER_PORT": str(free_port()),
    }  # fmt: skip
    command = [sys.executable, str(ROOT / "train.py"), *overrides("two", *KNOBS)]
    tasks = [
        subprocess.Popen(
            command, cwd=tmp_path, env={**os.environ, **both, "SLURM_PROCID": str(task), "SLURM_NODEID": str(task)}
        )
        for task in range(2)
    ]
    assert [task.wait(timeout=200) for task in tasks] == [0, 0]
    assert largest_difference(weights(one), weights(RunFolder(tmp_path / "two"))) < 1e-10


@pytest.mark.slow
def test_machines_with_other_weights_are_refused(overrides, tmp_path, tiny_glm):
    """Each has the files of its own disk."""
    import shutil

    from safetensors.torch import load_file, save_file

    other = tmp_path / "other"
    shutil.copytree(tiny_glm, other)
    changed = load_file(other / "model.safetensors")
    changed["model.norm.weight"] += 1
    save_file(changed, other / "model.safetensors", {"format": "pt"})
    both = {
        "TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
    }  # fmt: skip
    tasks = [
        subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), *overrides("two", *KNOBS, f"model.path={folder}")],
            cwd=tmp_path, env={**os.environ, **both, "RANK": str(rank)}, stderr=subprocess.PIPE, text=True,
        )
        for rank, folder in enumerate((tiny_glm, other))
    ]  # fmt: skip
    for task in tasks:
        error = task.communicate(timeout=200)[1]
        assert task.returncode == 2, error[-3000:]
        assert "error: model differs between ranks 0 and 1" in error
