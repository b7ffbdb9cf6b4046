"""A sweep's jobs without a network: a training in miniature behind the real entry point."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

from glm_lightning.sweeps.jobs import Job

ROOT = Path(__file__).resolve().parents[2]

# A run in miniature: what each job does is said by its overrides. It leaves what a run leaves.
TRAINING = """
import json, os, pathlib, signal, subprocess, sys, time
from glm_lightning.types import UserError

def run(cfg, *, overrides=()):
    goes_on = cfg.resume is not None
    folder = pathlib.Path(cfg.resume or cfg.run_dir)
    if goes_on:
        stored = json.loads((folder / "config.yaml").read_text())
        cfg.behaviour, cfg.lr = stored["behaviour"], stored["lr"]
        if (folder / "report.json").exists():
            raise UserError("this run is finished")
    else:
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(json.dumps({"behaviour": cfg.behaviour, "lr": cfg.lr}))
    (folder / "environment.json").write_text(json.dumps(dict(os.environ)))
    with (folder / "attempts").open("a") as attempts:
        attempts.write("goes on\\n" if goes_on else "begins\\n")
    print(f"训练 {cfg.behaviour}", flush=True)
    if cfg.behaviour == "fails":
        raise RuntimeError("no such kernel")
    if cfg.behaviour == "refused":
        raise UserError(["first", "second"])
    if cfg.behaviour == "killed" or (cfg.behaviour == "killed once" and not goes_on):
        os.kill(os.getpid(), signal.SIGKILL)
    if cfg.behaviour == "orphans":
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    if cfg.behaviour == "hangs" and not goes_on:
        (folder / "started").touch()
        time.sleep(600)
    if cfg.behaviour == "meets":  # another job that runs at the same time
        (folder / "started").touch()
        deadline = time.monotonic() + 60
        while len(list(folder.parent.glob("*/started"))) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    if cfg.behaviour == "validates":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        for step in range(1, 6):
            with (folder / "metrics.jsonl").open("a") as metrics:
                metrics.write(json.dumps({"step": step, "val/loss": cfg.lr / step}) + "\\n")
            time.sleep(0.3)
    if cfg.behaviour != "silent":
        metrics = {"val/loss": cfg.lr, "test/rouge_l": 50.0, "note": "text"}
        (folder / "report.json").write_text(json.dumps({"metrics": metrics, "peak_gib": 7.5, "tokens_per_s": None}))
"""

CONFIG = """
defaults: [_self_, sweep: null, launcher: null, override hydra/job_logging: none, override hydra/hydra_logging: none]
outputs: outputs
run_dir: null
resume: null
behaviour: fine
name: null
lr: 1e-3
"""


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
    printed, _ = process.communicate(timeout=180)
    return process.returncode, printed, recorded()


def recorded() -> list[Job]:
    (path,) = Path("outputs/sweeps").glob("*/sweep.json")
    return [Job(**job) for job in json.loads(path.read_text(encoding="utf-8"))]


def wait_for(pattern: str, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not list(Path("outputs").rglob(pattern)):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)


def job(number: int, status: str, loss: float | None, *overrides: str) -> Job:
    metrics = {} if loss is None else {"val/loss": loss}
    texts = list(overrides) or [f"x={number}"]
    return Job(number, status, texts, f"{number:02d}_job", 1, metrics, words=texts)  # type: ignore[arg-type]
