"""Tokens a second, memory and loss of one short LoRA job, in the line that other tools' scripts for the same job print.

    python tests/benchmarks/throughput.py MODEL [ROWS] --data alpaca.json                # LoRA
    python tests/benchmarks/throughput.py MODEL [ROWS] --data alpaca.json method=full    # any other setting
    python tests/benchmarks/throughput.py MODEL [ROWS] --data alpaca.json --profile      # and where the time goes

The job: the first ROWS (160) rows of an Alpaca file, one epoch, 16 rows an optimizer step, samples of at most 1,024
tokens, loss on the answers; LoRA of rank 8 and alpha 16 on every linear layer but the head; AdamW at 2e-4 without
warm-up; the precision that suits the machine; no validation. ``tokens`` are those of the samples without padding,
``train_s`` the training loop's seconds, first sight of every shape included; ``loss`` is the mean over the steps.
``matmul_gflops`` is what a large matrix product of the run's type reached in this process, ``mfu`` the share of it that
the job's own products (4 N + 2 M a token, N the weights passed forwards and backwards, M those with a gradient of their
own; neither head nor attention) amount to.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

JOB = (
    "experiment=cpu",
    "model=local",
    "data=alpaca",
    "data.val=null",
    "scheduler=constant",
    "scheduler.warmup=0",
    "optimizer.lr=2e-4",
    "trainer.log_every_n_steps=1",
    "callbacks.early_stopping=null",
    "callbacks.checkpoints=null",
    "general=null",
    "logger=none",
)


def main() -> None:
    """Run the job once, and print the line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="a JSON array of Alpaca rows")
    parser.add_argument("--profile", action="store_true", help="a table of operators on stderr; slows the job down")
    parser.add_argument("settings", nargs="*", metavar="[ROWS] key=value", help="rows of the job (160), and settings")
    options = parser.parse_intermixed_args()
    count, *overrides = (
        options.settings if options.settings and options.settings[0].isdigit() else ["160", *options.settings]
    )
    with tempfile.TemporaryDirectory() as folder:
        rows = json.loads(options.data.read_text(encoding="utf-8"))[: int(count)]
        data = Path(folder) / "rows.json"
        data.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
        own = [
            f"model.path={options.model}",
            f"data.train={data}",
            f"outputs={folder}",
            f"data.cache_dir={folder}/cache",
        ]
        line = job([*JOB, *own, *overrides], profile=options.profile)
    peak_rate = matmul_rate(str(line["precision"]))
    products = 4 * line.pop("weights") + 2 * line["trained"]
    line["matmul_gflops"] = round(peak_rate / 1e9, 1)
    line["mfu"] = round(line["tokens_per_s"] * products / peak_rate, 3)
    print(json.dumps(line), flush=True)


def job(overrides: list[str], *, profile: bool) -> dict[str, Any]:
    """Train, and read what the run reports."""
    import torch

    import glm_lightning as gl

    said = io.StringIO()
    with contextlib.redirect_stdout(said), _profiled() if profile else contextlib.nullcontext():
        try:
            run = gl.train(overrides)
        except BaseException:
            sys.stderr.write(said.getvalue())
            raise
    report = json.loads((run.path / "report.json").read_text(encoding="utf-8"))
    lines = (run.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [row["train/loss"] for row in map(json.loads, lines) if "train/loss" in row]
    return {
        "tool": "glm_lightning",
        "method": run.config.method._target_.rpartition(".")[2].lower(),
        "precision": report["precision"],
        "threads": torch.get_num_threads(),
        "tokens": round(report["tokens_per_s"] * report["train_seconds"]),
        "train_s": round(report["train_seconds"], 2),
        "tokens_per_s": round(report["tokens_per_s"], 1),
        "peak_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        "loss": round(sum(losses) / len(losses), 4),
        "trained": report["trained_parameters"],
        "weights": matrix_weights(overrides),
    }


def matrix_weights(overrides: list[str]) -> int:
    """Weights of the base's linear layers; the head, which sees supervised positions only, is left out."""
    from torch import nn

    from glm_lightning.models import Source

    path = next(value for key, _, value in (o.partition("=") for o in overrides) if key == "model.path")
    skeleton = Source(path).skeleton
    head = skeleton.get_output_embeddings()
    return sum(m.weight.numel() for m in skeleton.modules() if isinstance(m, nn.Linear) and m is not head)


def matmul_rate(precision: str, *, device: str = "cpu", seconds: float = 2.0) -> float:
    """Floating-point operations a second of a square product, on all threads or a GPU, in the type of ``precision``."""
    import torch

    kinds = {"bf16-mixed": torch.bfloat16, "bf16-true": torch.bfloat16, "64-true": torch.float64}
    size = 1536 if device == "cpu" else 8192
    left = torch.randn(size, size, dtype=kinds.get(precision, torch.float32), device=device)
    float((left @ left).sum())
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        product = left @ left
        if device != "cpu":
            torch.cuda.synchronize()
        count += 1
    del product
    return count * 2 * size**3 / (time.perf_counter() - start)


@contextlib.contextmanager
def _profiled():
    import torch.profiler

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        yield
    print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=40), file=sys.stderr)


if __name__ == "__main__":
    main()
