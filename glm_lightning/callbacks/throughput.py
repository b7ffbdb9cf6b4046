"""How fast training is and how much memory it takes."""

from __future__ import annotations

import sys
import time
from typing import Any, final

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from glm_lightning.types import Batch


@final
class Throughput(Callback):
    """Logs speed, padding and memory every ``trainer.log_every_n_steps`` optimizer steps, each since the last time.

    ``speed/tokens_per_s``: positions that are not padding, over all ranks, a second of training: from the first batch
    after a validation to the next validation, so neither that nor the checkpoint written behind it counts.
    ``data/padding``, ``data/supervised``: share of padding in all positions, share of labels in those that are not.
    ``memory/peak_gib``: see ``peak_gib``. Counting stays on the device: it is read when it is logged.
    """

    def __init__(self) -> None:
        self.num_tokens = 0
        """Positions that are not padding, over all ranks, since this process began to train."""
        self.seconds = 0.0
        """Seconds of training, validation left out."""
        self.peak_gib = 0.0
        """Peak memory in GiB of this rank: of its device on CUDA, otherwise of its process."""
        self._counts: Tensor | None = None  # (3,) tokens, labels, positions of this rank since they were last read
        self._window_seconds = 0.0
        self._running_since: float | None = None
        self._last_step = 0

    @property
    def tokens_per_s(self) -> float:
        """Tokens a second over the whole training, all ranks together; 0 before any was timed."""
        return self.num_tokens / self.seconds if self.seconds else 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an earlier run of the same object, and know where a resumed one begins."""
        self.num_tokens, self.seconds, self._window_seconds = 0, 0.0, 0.0
        self._counts, self._running_since, self._last_step = None, None, trainer.global_step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Let the clock run, if it stood."""
        if self._running_since is None:
            self._running_since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count the micro-batch, and log at the end of the steps that are logged."""
        counts = _count(batch)
        self._counts = counts if self._counts is None else self._counts + counts
        step, every = trainer.global_step, trainer.log_every_n_steps  # type: ignore[attr-defined]
        stepped, self._last_step = step != self._last_step, step
        if every and stepped and step % every == 0:
            pl_module.log_dict(self._read(trainer))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._stop()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add to the totals what came after the last step that was logged."""
        self._stop()
        if self._counts is not None:
            self._read(trainer)

    def _stop(self) -> None:
        if self._running_since is not None:
            self._window_seconds += time.perf_counter() - self._running_since
            self._running_since = None

    def _read(self, trainer: Trainer) -> dict[str, float]:
        assert self._counts is not None
        total = trainer.strategy.reduce(self._counts, reduce_op="sum")
        # Waits for the device, so the clock is read after it.
        num_tokens, num_labels, num_positions = total.tolist()
        running = self._running_since is not None
        self._stop()
        tokens_per_s = num_tokens / self._window_seconds
        self.num_tokens += num_tokens
        self.seconds += self._window_seconds
        self.peak_gib = peak_gib(trainer.strategy.root_device)
        self._counts, self._window_seconds = None, 0.0
        self._running_since = time.perf_counter() if running else None
        return {
            "speed/tokens_per_s": tokens_per_s,
            "data/padding": 1 - num_tokens / num_positions,
            "data/supervised": num_labels / num_tokens,
            "memory/peak_gib": self.peak_gib,
        }


def peak_gib(device: torch.device) -> float:
    """Peak memory in GiB: what tensors took on a CUDA device, otherwise the resident memory of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if sys.platform == "win32":
        import psutil

        return float(psutil.Process().memory_info().peak_wset) / 2**30
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20


def _count(batch: Batch) -> Tensor:
    num_tokens = batch.lengths.sum()
    # Filled on the device: a copy of a constant made on the host would make the host wait.
    return torch.stack(
        [
            num_tokens,
            torch.full_like(num_tokens, batch.targets.numel()),
            torch.full_like(num_tokens, batch.input_ids.numel()),
        ]
    )
