"""Sweeps whose jobs a cluster's launcher runs, in the local modes of submitit and Ray."""

from __future__ import annotations

import json
import os
import signal
from importlib.util import find_spec
from pathlib import Path

import pytest
from miniature import recorded, start, sweep, wait_for

from glm_lightning import config
from glm_lightning.config import composing
from glm_lightning.types import UserError

pytestmark = pytest.mark.skipif(
    find_spec("hydra_plugins.hydra_submitit_launcher") is None, reason="hydra-submitit-launcher is not installed"
)
HAS_RAY = find_spec("ray") is not None and find_spec("hydra_plugins.hydra_ray_launcher") is not None
LOCAL = [
    "slurm_local",
    pytest.param("ray", marks=[pytest.mark.slow, pytest.mark.skipif(not HAS_RAY, reason="ray is not installed")]),
]


@pytest.mark.parametrize("launcher", LOCAL)
def test_jobs_are_processes_of_their_own_and_recorded(checkout: Path, launcher: str) -> None:
    code, printed, jobs = sweep(checkout, f"launcher={launcher}", "behaviour=fine,fails,killed once", "name=类型#裙")
    assert code == 0, printed
    assert [(job.number, job.status) for job in jobs] == [(0, "done"), (1, "failed"), (2, "killed")]
    assert jobs[1].reason == "exit code 1: RuntimeError: no such kernel"
    assert all("训练" in Path(f"{job.path}.log").read_text(encoding="utf-8") for job in jobs)
    assert "best first" in printed
    # what the sweep says goes on with it: the job that was killed where it stopped, the others not at all
    folder = Path(jobs[0].path).parent
    code, printed, jobs = sweep(
        checkout,
        f"launcher={launcher}",
        "behaviour=fine,fails,killed once",
        "name=类型#裙",
        f"hydra.sweep.dir={folder}",
    )
    assert code == 0, printed
    assert [(job.number, job.status) for job in jobs] == [(0, "done"), (2, "done"), (1, "failed")]
    attempts = [Path(job.path, "attempts").read_text().split() for job in jobs]
    assert attempts == [["begins"], ["begins", "goes", "on"], ["begins"]]


@pytest.mark.slow
def test_where_a_launcher_loses_a_job_there_is_a_table_all_the_same(checkout: Path) -> None:
    process = start(checkout, "launcher=slurm_local", "behaviour=fine,hangs")
    wait_for("01*/started", process)
    wait_for("00*.json", process)
    (hanging,) = [
        int(folder.name)
        for folder in Path("/proc").iterdir()
        if folder.name.isdigit() and b"01_behaviour=hangs" in _command_of(folder)
    ]
    task = int(Path(f"/proc/{hanging}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(task, signal.SIGKILL)
    os.kill(hanging, signal.SIGKILL)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "best first" in printed
    assert "The sweep goes on with:" in printed
    assert [(job.number, job.status) for job in recorded()] == [(0, "done")]


def _command_of(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


def test_a_job_in_a_task_of_slurm_starts_its_own_ranks(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setenv("SLURM_JOB_NAME", "glm")
    _, printed, jobs = sweep(checkout, "-m", "behaviour=fine")
    assert [job.status for job in jobs] == ["done"], printed
    assert json.loads(Path(jobs[0].path, "environment.json").read_text())["SLURM_JOB_NAME"] == "bash"


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["launcher=slurm_local", "sweep.jobs=2"], "sweep.jobs is 2: the launcher decides"),
        (["launcher=slurm_local", "hydra.launcher.tasks_per_node=2"], "every process would run the whole job"),
        (["launcher=slurm"], "there is no srun here"),
        (["sweep=optuna", "launcher=slurm_local"], "it starts its jobs itself, here"),
    ],
)
def test_what_does_not_go_with_a_launcher_is_refused(
    checkout: Path, words: list[str], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    process = start(checkout, *words, "behaviour=fine")
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 2, printed
    assert problem in printed
    assert "Traceback" not in printed
    assert not list(Path("outputs").rglob("attempts"))


def test_a_launcher_that_is_not_installed_is_told_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise composing.ERRORS[0]("In 'hydra/config': Could not find 'hydra/launcher/ray'")

    monkeypatch.setattr(composing, "composed", refuse)
    with pytest.raises(UserError, match=r"not installed here: pip install 'glm-lightning\[ray\]'"):
        config.arguments(["launcher=ray"])


def test_slurm_is_told_what_yaml_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script that submitit would hand to sbatch has what conf/launcher/slurm.yaml says, and nothing it lacks."""
    import submitit
    from hydra.core.hydra_config import HydraConfig
    from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher
    from omegaconf import OmegaConf
    from submitit.slurm import slurm

    monkeypatch.setattr(slurm.SlurmExecutor, "affinity", classmethod(lambda _: 2))
    monkeypatch.setattr("shutil.which", lambda name, *_: f"/usr/bin/{name}")
    with composing.opened():
        from hydra import compose

        words = ["launcher=slurm", "hydra.launcher.partition=gpu", f"hydra.sweep.dir={tmp_path}"]
        tree = compose("train", [*words, "hydra.job.name=train"], return_hydra_config=True)
        HydraConfig.instance().set_config(tree)
        node = OmegaConf.to_container(tree.hydra.launcher, resolve=True)
    assert node.pop("_target_").endswith("SlurmLauncher")
    handed = {}

    def keep(self: submitit.AutoExecutor, *_: object) -> list[object]:
        handed.update(self._executor.parameters)
        return []

    monkeypatch.setattr(submitit.AutoExecutor, "map_array", keep)
    launcher = SlurmLauncher(**node)
    launcher.config = tree
    assert launcher.launch([["method=lora"]], 0) == []
    script = slurm._make_sbatch_string(command="run", folder=tmp_path, map_count=1, **handed)
    for line in ("partition=gpu", "gpus-per-node=1", "cpus-per-task=8", "mem=64GB", "time=1440", "signal=USR2@120"):
        assert f"#SBATCH --{line}" in script
    assert "--account" not in script
