"""What a release takes on a GPU, beside what `glm plan` expects: random weights of the real shape, real rows.

    python tests/benchmarks/releases.py chatglm3_6b --tokenizer DIR --data adgen.jsonl
    python tests/benchmarks/releases.py glm_4_9b_chat --tokenizer DIR --data adgen.jsonl --methods lora \\
        data.batch_size=4 data.max_length=1024 data.pad_to_multiple=1024
    python tests/benchmarks/releases.py chatglm3_6b --tokenizer DIR --data adgen.jsonl --layers 2    # to try it out

DIR holds the tokenizer of the release. A JSON line for each method, with and without gradient checkpointing: the peak
of the tensors (``tensors_gib``: allocated; what it holds in blocks is more) and of the whole device (``device_gib``, by
nvidia-smi), each beside what was expected; tokens a second, first steps left out; ``tflops``: of the products that
learning needs (4 N + 2 M a token, see throughput.py; what checkpointing repeats is not counted), and their share of
what a large product reaches in a process of its own (``mfu``).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch
from memory import QUIET, planned_choices
from throughput import matmul_rate, matrix_weights

from glm_lightning.models import Source
from glm_lightning.models.releases import published

T = TypeVar("T")
TRAIN = Path(__file__).resolve().parents[2] / "train.py"
SETTINGS = (*QUIET, "general=null", "logger=none", "trainer.max_epochs=100")


def main() -> None:
    """All methods, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("release", help="a file of conf/model/, without .yaml")
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--methods", default="lora,ptuning_v2,qlora")
    parser.add_argument("--checkpointing", default="true,false")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--layers", type=int, help="only so many")
    parser.add_argument("overrides", nargs="*", help="key=value")
    options = parser.parse_intermixed_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rate = None
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / options.release
        apart(make, options.release, options.tokenizer, model, layers=options.layers, device=device)
        given = [f"model={options.release}", f"model.path={model}", f"data.train={options.data}", *SETTINGS]
        given += [f"data.cache_dir={folder}/cache", f"trainer.max_steps={options.steps}", *options.overrides]
        weights, sized = matrix_weights(given), _size()
        plans = ThreadPoolExecutor(4)
        of_method = {name: [*given, f"method={name}"] for name in options.methods.split(",")}
        planned = {name: plans.submit(planned_choices, settings, *sized) for name, settings in of_method.items()}
        for method, settings in of_method.items():
            choices = {choice["checkpointing"]: choice for choice in planned[method].result()}
            for checkpointing in options.checkpointing.split(","):
                expected = choices[checkpointing == "true"]
                run = Path(folder) / f"{method}-{checkpointing}"
                line = measured([*settings, f"model.gradient_checkpointing={checkpointing}", f"run_dir={run}"], run)
                trained = line.pop("trained")
                rate = rate or apart(matmul_rate, "bf16-mixed", device=device)
                flops = line["tokens_per_s"] * (4 * weights + 2 * trained)
                tensors = round(max(expected["moments"].values()) / 2**30, 2)
                told = {"expected_tensors_gib": tensors, "expected_device_gib": expected["peak_gib"]}
                speed = {"tflops": round(flops / 1e12, 1), "mfu": round(flops / rate, 3)}
                named = {"release": options.release, "method": method, "checkpointing": checkpointing == "true"}
                print(json.dumps(named | told | line | speed), flush=True)


def apart(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call it in a process that is gone afterwards, with all that it took of a GPU."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args, **kwargs).result()


def make(release: str, tokenizer: Path, folder: Path, *, layers: int | None, device: str) -> None:
    """Write a folder of transformers' layout with random weights in bfloat16, and the tokenizer's files."""
    from transformers import AutoModelForCausalLM

    shutil.copytree(tokenizer, folder)
    config = published(Source(path=release)).config
    if layers is not None:
        config.num_hidden_layers = layers
    with torch.device(device):
        network = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    network.save_pretrained(folder)


def measured(settings: list[str], run: Path) -> dict[str, Any]:
    """One run in a process of its own."""
    with used() as most:
        done = subprocess.run([sys.executable, str(TRAIN), *settings], capture_output=True, encoding="utf-8")
    if done.returncode:
        raise SystemExit(done.stdout[-3000:] + done.stderr[-3000:])
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    speeds = [line["speed/tokens_per_s"] for line in lines if "speed/tokens_per_s" in line]
    return {
        "tensors_gib": round(report["peak_gib"], 2),
        "device_gib": round(max(most, default=0) / 1024, 2),
        "tokens_per_s": round(speeds[-1], 1),
        "trained": report["trained_parameters"],
    }


def _size() -> list[str]:
    """What tells `glm plan` the memory of the first GPU, which it then leaves alone."""
    return ["--memory", f"{_asked('memory.total')}MiB"] if shutil.which("nvidia-smi") else []


def _asked(query: str) -> int:
    """What nvidia-smi says of the first GPU."""
    command = ["nvidia-smi", "--id=0", f"--query-gpu={query}", "--format=csv,noheader,nounits"]
    return int(subprocess.run(command, capture_output=True, check=True, encoding="utf-8").stdout)


@contextlib.contextmanager
def used() -> Iterator[list[int]]:
    """While it is entered, MiB that are taken of the first GPU are added to the list five times a second."""
    found: list[int] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.2):
            found.append(_asked("memory.used"))

    if shutil.which("nvidia-smi"):
        watcher = threading.Thread(target=watch)
        watcher.start()
    try:
        yield found
    finally:
        ended.set()


if __name__ == "__main__":
    main()
