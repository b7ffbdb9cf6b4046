from __future__ import annotations

import csv
import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from glm_lightning import sweeps
from glm_lightning.sweeps import Job, ranked, report, run

ROOT = Path(__file__).resolve().parents[1]

# A run in miniature: what each job does is said by its overrides.
TRAINING = """
import json, os, pathlib, signal, subprocess, sys, time
from glm_lightning.types import UserError

def run(cfg, *, overrides=()):
    folder = pathlib.Path(cfg.run_dir)
    folder.mkdir(parents=True)
    print(f"训练 {cfg.behaviour}", flush=True)
    if cfg.behaviour == "fails":
        raise RuntimeError("no such kernel")
    if cfg.behaviour == "refused":
        raise UserError(["first", "second"])
    if cfg.behaviour == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if cfg.behaviour == "orphans":
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    if cfg.behaviour == "hangs":
        (folder / "started").touch()
        time.sleep(600)
    if cfg.behaviour != "silent":
        metrics = {"val/loss": cfg.lr, "test/rouge_l": 50.0, "note": "text"}
        (folder / "report.json").write_text(json.dumps({"metrics": metrics, "more": 1}))
"""

CONFIG = """
defaults: [_self_, sweep: null, override hydra/job_logging: none, override hydra/hydra_logging: none]
outputs: outputs
run_dir: null
behaviour: fine
name: null
lr: 1e-3
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The entry point and the package as they are, but for the training and conf/."""
    folder = tmp_path / "checkout"
    package = folder / "glm_lightning"
    package.mkdir(parents=True)
    for path in (ROOT / "glm_lightning").iterdir():
        if path.name not in ("__pycache__", "training", "training.py", "conf", "train.py"):
            (package / path.name).symlink_to(path)
    (package / "training.py").write_text(TRAINING, encoding="utf-8")
    (folder / "train.py").write_bytes((ROOT / "train.py").read_bytes())
    hydra = (ROOT / "conf" / "train.yaml").read_text(encoding="utf-8").partition("\nhydra:")[2]
    (folder / "conf" / "sweep").mkdir(parents=True)
    (folder / "conf" / "train.yaml").write_text(f"{CONFIG}\nhydra:{hydra}", encoding="utf-8")
    (folder / "conf" / "sweep" / "rates.yaml").write_text(
        "# @package _global_\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      lr: 3,1,2\n", encoding="utf-8"
    )
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setenv("PYTHONUTF8", "1")
    monkeypatch.setattr(sweeps, "entry_point", lambda: folder / "train.py")
    monkeypatch.chdir(tmp_path)
    return folder


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(folder / "train.py"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        start_new_session=True,
        # Where the tests run in the background of a shell, Ctrl-C is ignored, and children inherit that.
        preexec_fn=heed_interrupts,
    )


def heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def sweep(folder: Path, *arguments: str) -> tuple[int, str, list[Job]]:
    process = start(folder, *arguments)
    printed, _ = process.communicate(timeout=120)
    return process.returncode, printed, recorded()


def recorded() -> list[Job]:
    (path,) = Path("outputs/sweeps").glob("*/sweep.json")
    return [Job(**job) for job in json.loads(path.read_text(encoding="utf-8"))]


def test_jobs_run_in_processes_of_their_own_and_are_ranked(checkout: Path) -> None:
    code, printed, jobs = sweep(checkout, "-m", "behaviour=fine,fails", "lr=2,1", "name=类型#裙")
    assert code == 0, printed
    assert [(job.status, job.overrides) for job in jobs[:2]] == [
        ("done", ["behaviour=fine", "lr=1"]),
        ("done", ["behaviour=fine", "lr=2"]),
    ]
    assert [job.metrics["val/loss"] for job in jobs[:2]] == [1, 2]
    assert all(job.metrics.keys() == {"val/loss", "test/rouge_l"} for job in jobs[:2])
    assert [(job.status, job.reason) for job in jobs[2:]] == 2 * [
        ("failed", "exit code 1: RuntimeError: no such kernel")
    ]
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
    assert [job.status for job in jobs] == ["failed", "failed"]
    assert jobs[0].reason == "killed by SIGKILL (out of memory?)"
    assert "report.json" in jobs[1].reason
    assert "best first" in printed
    assert "Traceback" not in printed.partition("best first")[2]


def test_one_run_is_no_sweep_and_hydra_writes_nothing(checkout: Path) -> None:
    process = start(checkout, "run_dir=here")
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0, printed
    assert {path.name for path in Path().iterdir()} == {"checkout", "here"}
    assert [path.name for path in Path("here").iterdir()] == ["report.json"]


def test_jobs_find_the_yaml_files_of_the_sweep(checkout: Path) -> None:
    mine = Path("mine") / "experiment"
    mine.mkdir(parents=True)
    (mine / "own.yaml").write_text("# @package _global_\nbehaviour: fails\n", encoding="utf-8")
    _, printed, jobs = sweep(checkout, "-m", "--config-dir", "mine", "+experiment=own", "lr=1")
    assert [job.reason for job in jobs] == ["exit code 1: RuntimeError: no such kernel"], printed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_stops_the_job_and_the_sweep_and_prints_the_table(checkout: Path, number: signal.Signals) -> None:
    process = start(checkout, "-m", "behaviour=fine,hangs,fails")
    deadline = time.monotonic() + 60
    while not list(Path("outputs").rglob("started")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130, printed
    assert [job.status for job in recorded()] == ["done", "stopped"]
    assert "best first" in printed


def test_a_users_mistake_is_the_reason(checkout: Path, tmp_path: Path) -> None:
    job = run(["behaviour=refused"], swept=["behaviour=refused"], number=3, folder=tmp_path / "sweep")
    assert job.reason == "exit code 2: error: 2 problems | 1. first | 2. second"
    assert job.path == str(tmp_path / "sweep" / "03_behaviour=refused")


def test_ranks_that_outlive_a_job_are_stopped(checkout: Path, tmp_path: Path) -> None:
    start = time.monotonic()
    job = run(["behaviour=orphans", "run_dir=ignored"], swept=[], number=0, folder=tmp_path / "with space 数")
    assert time.monotonic() - start < 60
    assert job.status == "done"
    assert Path(job.path, "report.json").is_file()


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
    assert sweeps._name(7, overrides) == name


def job(number: int, status: str, loss: float | None) -> Job:
    metrics = {} if loss is None else {"val/loss": loss}
    return Job(number=number, status=status, overrides=[f"x={number}"], path="", seconds=1, metrics=metrics)  # type: ignore[arg-type]


def test_failed_jobs_and_those_without_a_loss_come_last() -> None:
    jobs = [job(0, "failed", None), job(1, "done", math.nan), job(2, "done", 2.0), job(3, "done", 1.0)]
    jobs += [job(4, "done", None), job(5, "stopped", 0.1), job(6, "done", 1.0)]
    assert [item.number for item in ranked(jobs)] == [3, 6, 2, 1, 4, 0, 5]


def test_a_report_can_be_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for item in (job(0, "done", 2.0), job(1, "done", math.nan), job(2, "done", 1.0)):
        sweeps._record(item, tmp_path)
    first = [item.number for item in report(tmp_path)]
    assert [item.number for item in report(tmp_path)] == first == [2, 0, 1]
    printed = capsys.readouterr().out
    assert str(tmp_path) in printed
    assert sweeps.RANKED_BY in printed


def test_the_score_is_what_a_sweeper_minimises() -> None:
    assert job(0, "done", 1.5).score == 1.5
    assert math.isnan(job(0, "failed", 1.5).score)
    assert math.isnan(job(0, "done", None).score)
