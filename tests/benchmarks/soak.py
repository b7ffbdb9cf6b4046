"""Train for some minutes with longer and longer steps, and see whether memory stays flat.

    python tests/benchmarks/soak.py            # 30 minutes
    python tests/benchmarks/soak.py 2 method=full

The rows of an epoch are sorted into steps of like length, so that steps of all shapes come in random order, and each
shape comes again and again. What is allocated grows with the longest row and with the first sight of each shape; then
it must stay. Prints a JSON line a minute and one at the end; exits with 1 if the last third of the run needed more
than `SLACK` of what the second third did at its most.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, final

import psutil
from lightning.pytorch import Callback, LightningModule, Trainer

SLACK = 1.02
"""Growth that is the allocator's own."""

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "asks", "who", "you", "are"]


@final
class Minutes(Callback):
    """Notes resident memory with every step, and ends the run when its time is up."""

    def __init__(self, minutes: float) -> None:
        self._seconds, self._begun, self._told = 60 * minutes, 0.0, 0
        self.seen: list[float] = []  # GiB

    def on_train_start(self, *_: Any) -> None:
        """Start the clock."""
        self._begun = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Note, print once a minute."""
        elapsed = time.monotonic() - self._begun
        self.seen.append(psutil.Process().memory_info().rss / 2**30)
        if elapsed // 60 > self._told:
            self._told = int(elapsed // 60)
            line = {"minute": self._told, "step": trainer.global_step, "gib": round(self.seen[-1], 4)}
            print(json.dumps(line), file=sys.__stdout__, flush=True)
        trainer.should_stop = trainer.should_stop or elapsed > self._seconds

    def largest(self, third: int) -> float:
        """Most memory in GiB in a third (1, 2, 3) of the micro-batches."""
        ends = [len(self.seen) * number // 3 for number in (third - 1, third)]
        return max(self.seen[slice(*ends)])


def write_rows(path: Path, *, count: int) -> None:
    """Rows whose answers grow from 2 to 100 words."""
    rng = random.Random(0)
    lines = []
    for number in range(count):
        answer = " ".join(rng.choices(WORDS, k=2 + 98 * number // count))
        messages = [{"role": "user", "content": f"number {number}"}, {"role": "assistant", "content": answer}]
        lines.append(json.dumps({"messages": messages}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def soak(minutes: float, overrides: list[str], folder: Path) -> Minutes:
    """Train in this process."""
    import glm_lightning as gl
    from glm_lightning.training import build

    clock, watchers = Minutes(minutes), build._watchers
    build._watchers = lambda config: watchers(config) | {"minutes": clock}
    rows = folder / "rows.jsonl"
    write_rows(rows, count=128)
    common = [
        *("data=messages", f"data.train={rows}", "data.val=4", "data.batch_size=2", "data.group_steps=1000"),
        *("trainer.max_epochs=100000", "callbacks.early_stopping=null", "logger=none", "scheduler=constant"),
        *(f"run_dir={folder / 'run'}", f"data.cache_dir={folder / 'cache'}", *overrides),
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        gl.train(common)
    return clock


def main() -> None:
    """Run, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("minutes", type=float, nargs="?", default=30.0)
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        clock = soak(args.minutes, args.overrides, Path(folder))
    thirds = [round(clock.largest(third), 4) for third in (1, 2, 3)]
    flat = thirds[2] <= SLACK * thirds[1]
    line = {"benchmark": "soak", "minutes": args.minutes, "micro_batches": len(clock.seen), "peak_gib_by_third": thirds}
    print(json.dumps(line | {"overrides": args.overrides, "flat": flat}), flush=True)
    sys.exit(not flat)


if __name__ == "__main__":
    main()
