"""Kill a run at random moments, resume it each time, and compare its end with that of one that was left alone.

    python tests/benchmarks/kills.py                    # 20 kills of a LoRA run of the embedded model
    python tests/benchmarks/kills.py --kills 40 method=full trainer=ddp_cpu

Every other kill is SIGKILL, the others SIGTERM; a fifth of them come while the process is still starting up. Further
words are overrides of train.py. Prints a JSON line for each kill and one at the end; exits with 1 unless weights,
optimizer and scores of both ends are equal to the last bit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from glm_lightning.runs import RunFolder
from glm_lightning.runs.checkpoints import TENSORS, TRAINED

TRAIN = Path(__file__).resolve().parents[2] / "train.py"
STARTING = 5
"""Of so many kills one comes before the first step."""


def start(arguments: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """A run in a process group of its own: a kill of the group leaves none of its ranks."""
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, str(TRAIN), *arguments], stdout=output, stderr=output, start_new_session=True
        )


def step_of(run: RunFolder) -> int:
    """The last step that was logged, whether a checkpoint holds it or not."""
    if not run.metrics.is_file():
        return 0
    lines = run.metrics.read_bytes().splitlines()
    steps = [json.loads(line)["step"] for line in lines[-20:] if line.endswith(b"}")]
    return max((step for step in steps if step is not None), default=0)


def wait_for(run: RunFolder, process: subprocess.Popen[bytes], step: int) -> None:
    """Return when the run has logged a step anew, or has ended."""
    size = run.metrics.stat().st_size if run.metrics.is_file() else 0
    while process.poll() is None:
        if run.metrics.is_file() and run.metrics.stat().st_size > size and step_of(run) >= step:
            return
        time.sleep(0.01)


def killed_run(
    arguments: Sequence[str], run: RunFolder, steps: int, args: argparse.Namespace
) -> list[dict[str, object]]:
    """Start, kill, resume and so on; then let the run come to its end."""
    rng = random.Random(args.seed)
    kills: list[dict[str, object]] = []
    log = run.path.with_suffix(".log")
    for number, step in enumerate(sorted(rng.sample(range(1, steps * 4 // 5), args.kills))):
        process = start([f"resume={run.path}"] if run.config.is_file() else arguments, log)
        if number % STARTING == STARTING - 1:
            time.sleep(rng.uniform(0, args.startup))
        else:
            wait_for(run, process, step)
            time.sleep(rng.uniform(0, args.spread))
        signum = (signal.SIGKILL, signal.SIGTERM)[number % 2]
        if process.poll() is not None:
            sys.exit(f"the run ended with {process.returncode} before kill {number + 1}:\n{tail(log)}")
        if signum is signal.SIGKILL:
            os.killpg(process.pid, signum)
        else:
            process.send_signal(signum)
        begun = time.perf_counter()
        code = process.wait()
        kills.append({"kill": number + 1, "signal": signum.name, "step": step_of(run), "exit": code,
                      "seconds": round(time.perf_counter() - begun, 2)})  # fmt: skip
        print(json.dumps(kills[-1]), flush=True)
    # a kill may come when all is done and the process is about to leave
    if not run.finished and start([f"resume={run.path}"], log).wait():
        sys.exit(f"the last resumed run failed:\n{tail(log)}")
    return kills


def tail(log: Path) -> str:
    """The end of what runs have printed."""
    return log.read_text(encoding="utf-8")[-3000:]


def differences(one: RunFolder, other: RunFolder) -> list[str]:
    """What of two ends is not equal to the last bit."""
    files = [file for file in (TRAINED, TENSORS) if (one.last / file).read_bytes() != (other.last / file).read_bytes()]
    return files + [key for key in ("metrics", "steps") if one.read_report()[key] != other.read_report()[key]]


def main() -> None:
    """Run both, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, help="optimizer steps of a run (default: 6 for each kill)")
    parser.add_argument("--spread", type=float, default=0.4, help="seconds behind a step within which a kill comes")
    parser.add_argument("--startup", type=float, default=6.0, help="seconds of start-up within which a fifth come")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("overrides", nargs="*", default=["method.dropout=0.1"])
    args = parser.parse_intermixed_args()
    args.steps = args.steps or 6 * args.kills
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        left, killed = (RunFolder(Path(folder) / name) for name in ("left", "killed"))
        common = [
            *("data.test=null", "data.val=8", "data.batch_size=2", "logger=none", "trainer.log_every_n_steps=1"),
            *("trainer.accumulate_grad_batches=2", "trainer.val_check_interval=7", "callbacks.early_stopping=null"),
            *("callbacks.checkpoints.every_n_steps=1", f"trainer.max_steps={args.steps}", *args.overrides),
        ]
        if start([*common, f"run_dir={left.path}"], left.path.with_suffix(".log")).wait():
            sys.exit(tail(left.path.with_suffix(".log")))
        steps = left.read_report()["steps"]
        kills = killed_run([*common, f"run_dir={killed.path}"], killed, steps, args)
        found = differences(left, killed)
    counts = {name: sum(kill["signal"] == name for kill in kills) for name in ("SIGKILL", "SIGTERM")}
    seconds = round(time.perf_counter() - begun, 1)
    line = {"benchmark": "kills", "kills": len(kills), **counts, "steps": steps, "seconds": seconds}
    print(json.dumps(line | {"overrides": args.overrides, "equal": not found, "differs": found}), flush=True)
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
