from __future__ import annotations

import csv
import json
import math
import shlex
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from miniature import job, recorded, start, sweep, wait_for

from glm_lightning.sweeps import jobs as kept
from glm_lightning.sweeps.grid import own
from glm_lightning.sweeps.jobs import Job, ranked
from glm_lightning.sweeps.pool import Pool, share
from glm_lightning.sweeps.table import report


def test_jobs_run_in_processes_of_their_own_and_are_ranked(checkout: Path) -> None:
    code, printed, jobs = sweep(checkout, "-m", "behaviour=fine,fails", "lr=2,1", "name=类型#裙")
    assert code == 0, printed
    assert [(job.status, job.overrides) for job in jobs[:2]] == [
        ("done", ["behaviour=fine", "lr=1"]),
        ("done", ["behaviour=fine", "lr=2"]),
    ]
    assert [job.metrics["val/loss"] for job in jobs[:2]] == [1, 2]
    assert all(job.metrics.keys() == {"val/loss", "test/rouge_l", "run/peak_gib"} for job in jobs[:2])
    assert [(job.status, job.reason) for job in jobs[2:]] == 2 * [
        ("failed", "exit code 1: RuntimeError: no such kernel")
    ]
    assert "python train.py behaviour=fine lr=1 'name=类型#裙'" in printed
    assert "best first" in printed
    assert "训练 fails" in printed
    assert all(Path(job.path).is_dir() and Path(f"{job.path}.log").is_file() for job in jobs)
    assert Path(jobs[0].path).name == "01_behaviour=fine,lr=1"
    text = (Path(jobs[0].path).parent / "sweep.csv").read_text(encoding="utf-8")
    assert [row["val/loss"] for row in csv.DictReader(text.splitlines())] == ["1", "2", "", ""]


def test_a_file_of_conf_sweep_needs_no_m_and_is_not_run_by_its_jobs(checkout: Path) -> None:
    code, printed, jobs = sweep(checkout, "sweep=rates", "name=1e-4")
    assert code == 0, printed
    assert [job.overrides for job in jobs] == [["lr=1"], ["lr=2"], ["lr=3"]]


def test_a_sweep_without_a_success_fails(checkout: Path) -> None:
    code, printed, jobs = sweep(checkout, "-m", "behaviour=killed,silent")
    assert code == 1
    assert [job.status for job in jobs] == ["killed", "failed"]
    assert jobs[0].reason == "killed by SIGKILL (out of memory?)"
    assert "report.json" in jobs[1].reason
    assert "best first" in printed
    assert "Traceback" not in printed.partition("best first")[2]


def test_one_run_is_no_sweep_and_hydra_writes_nothing(checkout: Path) -> None:
    process = start(checkout, "run_dir=here")
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0, printed
    assert {path.name for path in Path().iterdir()} == {"checkout", "here"}
    assert {path.name for path in Path("here").iterdir()} == {
        "attempts",
        "config.yaml",
        "environment.json",
        "report.json",
    }


def test_jobs_find_the_yaml_files_of_the_sweep(checkout: Path) -> None:
    mine = Path("mine") / "experiment"
    mine.mkdir(parents=True)
    (mine / "own.yaml").write_text("# @package _global_\nbehaviour: fails\n", encoding="utf-8")
    _, printed, jobs = sweep(checkout, "-m", "--config-dir", "mine", "+experiment=own", "lr=1")
    assert [job.reason for job in jobs] == ["exit code 1: RuntimeError: no such kernel"], printed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_stops_the_job_and_the_sweep_and_prints_the_table(checkout: Path, number: signal.Signals) -> None:
    process = start(checkout, "-m", "behaviour=fine,hangs,fails")
    wait_for("started", process)
    process.send_signal(number)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130, printed
    assert [job.status for job in recorded()] == ["done", "stopped"]
    assert "best first" in printed


def test_a_sweep_goes_on_where_it_stopped(checkout: Path) -> None:
    process = start(checkout, "-m", "behaviour=fine,fails,killed once,hangs,silent", "lr=1")
    wait_for("03*/started", process)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert [(job.number, job.status) for job in recorded()] == [
        (0, "done"),
        (1, "failed"),
        (2, "killed"),
        (3, "stopped"),
    ]
    (command,) = [line for line in printed.splitlines() if "hydra.sweep.dir=" in line]
    code, printed, jobs = sweep(checkout, *shlex.split(command.partition("train.py ")[2]))
    assert code == 0, printed
    outcomes = [(0, "done"), (2, "done"), (3, "done"), (1, "failed"), (4, "failed")]
    assert [(job.number, job.status) for job in jobs] == outcomes
    attempts = [Path(job.path, "attempts").read_text().split("\n")[:-1] for job in jobs]
    assert attempts == [["begins"], ["begins", "goes on"], ["begins", "goes on"], ["begins"], ["begins"]]
    assert "hydra.sweep.dir" not in printed
    # failed jobs only where that is asked for
    sweep(checkout, *shlex.split(command.partition("train.py ")[2]), "sweep.retry=true")
    assert Path(jobs[3].path, "attempts").read_text() == "begins\ngoes on\n"


def test_what_ended_after_the_sweep_was_killed_counts(tmp_path: Path) -> None:
    folder = tmp_path / "02_x=1"
    folder.mkdir()
    assert kept.settled(2, ["x=1"], tmp_path, retry=False) is None
    (folder / "report.json").write_text('{"metrics": {"val/loss": 0.5}}')
    found = kept.settled(2, ["x=1"], tmp_path, retry=False)
    assert found is not None
    assert (found.status, found.score) == ("done", 0.5)


def test_jobs_run_at_the_same_time_on_their_shares(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    code, printed, jobs = sweep(checkout, "-m", "behaviour=meets", "lr=2,1", "sweep.jobs=2")
    assert code == 0, printed
    assert [job.status for job in jobs] == ["done", "done"]
    seen = [json.loads(Path(job.path, "environment.json").read_text())["CUDA_VISIBLE_DEVICES"] for job in jobs]
    assert sorted(seen) == ["3", "5"]
    assert "训练" not in printed
    assert all("训练 meets" in Path(f"{job.path}.log").read_text(encoding="utf-8") for job in jobs)


@pytest.mark.parametrize(
    ("visible", "slots", "shares"),
    [
        ("0,1,2,3", 2, ["0,1", "2,3"]),
        ("0,1,2", 2, ["0", "1,2"]),
        ("0", 3, ["0", "0", "0"]),
        ("GPU-a,GPU-b", 2, ["GPU-a", "GPU-b"]),
    ],
)
def test_gpus_are_shared_out(visible: str, slots: int, shares: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [share(slot, slots)["CUDA_VISIBLE_DEVICES"] for slot in range(slots)] == shares
    assert share(0, 1) == {}


def test_cores_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert share(1, 3) == {"OMP_NUM_THREADS": "2"}
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert share(1, 3) == {}


def test_a_users_mistake_is_the_reason(checkout: Path, tmp_path: Path) -> None:
    found = alone(["behaviour=refused"], number=3, folder=tmp_path / "sweep")
    assert found.reason == "exit code 2: error: 2 problems | 1. first | 2. second"
    assert found.path == str(tmp_path / "sweep" / "03_behaviour=refused")


def test_ranks_that_outlive_a_job_are_stopped(checkout: Path, tmp_path: Path) -> None:
    begun = time.monotonic()
    found = alone(["behaviour=orphans"], number=0, folder=tmp_path / "with space 数")
    assert time.monotonic() - begun < 60
    assert found.status == "done"
    assert Path(found.path, "report.json").is_file()


def alone(overrides: list[str], *, number: int, folder: Path) -> Job:
    pool = Pool(folder, size=1)
    pool.start(number, overrides, overrides)
    (found,) = pool.wait(below=1)
    pool.close()
    assert kept.recorded(folder) == [found]
    return found


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "07"),
        (["method=lora", "optimizer.lr=0.001"], "07_method=lora,lr=0.001"),
        (["data/format=messages", "+data.x=1"], "07_format=messages,+x=1"),
        (["data.train='数据 (1)/a.jsonl'"], "07_train=-数据-1-a.jsonl"),
        (["name=" + "x" * 200], "07_name=" + "x" * 75),
    ],
)
def test_a_jobs_folder_is_named_by_what_differs(overrides: Sequence[str], name: str) -> None:
    assert kept.name(7, overrides) == name


def test_a_sweeps_own_overrides_are_not_its_jobs() -> None:
    given = ["sweep=optuna", "+sweep.space.x=[1]", "~sweep.space.y", "hydra.sweep.dir=x", "method=lora", "sweeper=1"]
    assert own(given) == ["method=lora", "sweeper=1"]


def test_failed_jobs_and_those_without_a_loss_come_last() -> None:
    jobs = [job(0, "failed", None), job(1, "done", math.nan), job(2, "done", 2.0), job(3, "done", 1.0)]
    jobs += [job(4, "done", None), job(5, "stopped", 0.1), job(6, "done", 1.0)]
    assert [item.number for item in ranked(jobs)] == [3, 6, 2, 1, 4, 0, 5]


def test_a_report_can_be_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for item in (job(0, "done", 2.0), job(1, "done", math.nan), job(2, "done", 1.0)):
        kept.record(item, tmp_path)
    first = [item.number for item in report(tmp_path)]
    assert [item.number for item in report(tmp_path)] == first == [2, 0, 1]
    printed = capsys.readouterr().out
    assert str(tmp_path) in printed
    assert "val/loss" in printed
    assert "sweep.html" in printed


def test_the_score_is_what_a_sweeper_minimises() -> None:
    assert job(0, "done", 1.5).score == 1.5
    assert math.isnan(job(0, "failed", 1.5).score)
    assert math.isnan(job(0, "done", None).score)
