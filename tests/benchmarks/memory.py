"""What `glm plan` expects, and what the same run takes, for several configurations on the CPU.

    python tests/benchmarks/memory.py MODEL --data alpaca.json [ROWS]

One epoch over the first ROWS (32) rows for each of `CONFIGURATIONS`: two optimizer steps at least, as the averages that
the first one makes lie beside the activations of the second. A JSON line for each: GiB expected before the run, GiB
that a process took at its most (`peak_gib` of its report) where freed blocks go back to the system, as they do where
memory is short, their ratio, and GiB where the C library keeps them. Exits with 1 if a ratio is off by more than
`SLACK`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from glm_lightning.training.heap import LARGE

TWO = ("trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=bf16-mixed", "data.max_tokens=1024")
"""Two processes on the CPU."""

CONFIGURATIONS = (
    ("method=lora",),
    ("method=lora", "data.max_tokens=2048"),
    ("method=lora", "trainer.precision=32-true"),
    ("method=ptuning_v2",),
    ("method=full",),
    ("method=full", "model.gradient_checkpointing=true"),
    ("method=qlora", "data.max_tokens=2048"),
    ("method=full", "trainer=fsdp", *TWO),
    ("method=full", "trainer=fsdp_zero2", *TWO),
    # these need glm-lightning[deepspeed]
    ("method=full", "trainer=deepspeed", *TWO),
    ("method=full", "trainer=deepspeed_zero2", *TWO),
)

QUIET = ("data.val=null", "trainer.max_epochs=1", "callbacks.checkpoints=null", "callbacks.early_stopping=null")

SLACK = 0.1
"""Of the estimate."""


def main() -> None:
    """Run all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("rows", type=int, nargs="?", default=32)
    parser.add_argument("--data", type=Path, required=True, help="a JSON array of Alpaca rows")
    options = parser.parse_args()
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "rows.json"
        rows = json.loads(options.data.read_text(encoding="utf-8"))[: options.rows]
        data.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
        given = ("model=local", f"model.path={options.model}", f"data.train={data}", f"data.cache_dir={folder}/cache")
        for number, configuration in enumerate(CONFIGURATIONS):
            settings = [*given, *QUIET, *configuration]
            expected = planned(settings)
            took = trained([*settings, f"run_dir={folder}/{number}"], given_back=True)
            kept = trained([*settings, f"run_dir={folder}/{number}_kept"], given_back=False)
            worst = max(worst, abs(expected / took - 1))
            line = {"settings": " ".join(configuration), "expected_gib": expected, "took_gib": took}
            print(json.dumps(line | {"ratio": round(expected / took, 3), "took_if_kept_gib": kept}), flush=True)
    sys.exit(worst > SLACK)


def planned(settings: list[str]) -> float:
    """GiB that are expected."""
    choices = {choice["checkpointing"]: choice["peak_gib"] for choice in planned_choices(settings)}
    return float(choices["model.gradient_checkpointing=true" in settings])


def planned_choices(settings: list[str], *options: str) -> list[dict[str, Any]]:
    """What `glm plan` says of the method in ``settings``, without and with gradient checkpointing."""
    method = next(each.partition("=")[2] for each in settings if each.startswith("method="))
    plan = "import sys; from glm_lightning.cli import main; main(['plan', *sys.argv[1:]])"
    command = [sys.executable, "-c", plan, *settings, *options, "--methods", method, "--json"]
    said = json.loads(subprocess.run(command, capture_output=True, check=True, encoding="utf-8").stdout)
    return list(said["methods"][0]["choices"])


def trained(settings: list[str], *, given_back: bool) -> float:
    """GiB that the run took whose last setting is its folder."""
    train, folder = Path(__file__).resolve().parents[2] / "train.py", Path(settings[-1].partition("=")[2])
    environment = os.environ | ({"MALLOC_MMAP_THRESHOLD_": str(LARGE)} if given_back else {})
    subprocess.run([sys.executable, str(train), *settings], env=environment, capture_output=True, check=True)
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return round(float(report["peak_gib"]), 3)


if __name__ == "__main__":
    main()
