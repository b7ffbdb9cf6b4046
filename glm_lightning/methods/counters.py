"""What Lightning has counted of a run that goes on."""

from __future__ import annotations

from typing import Any


def recount(checkpoint: dict[str, Any], accumulate: int) -> None:
    """Count the steps done in micro-batches of this run: other devices or another budget split steps differently.

    Checkpoints fall between steps, so ``ready`` is a whole number of steps; the other counters follow it.
    """
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    for counts in (progress["total"], progress["current"]):
        steps, rest = divmod(counts["ready"], checkpoint["accumulate_grad_batches"])
        assert rest == 0, "a checkpoint inside a step"
        shift = steps * accumulate - counts["ready"]
        for name in counts:
            counts[name] += shift
