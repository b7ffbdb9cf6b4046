"""When a checkpoint is written: the best by validation loss, and the newest."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, final

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint

from glm_lightning.types import UserError

MONITOR = "val/loss"
"""What the best checkpoint has least of."""


@final
class BestAndLast(Checkpoint):
    """Writes ``last`` every ``every_n_steps`` optimizer steps and after every validation, ``best`` when it improves.

    Lightning's ModelCheckpoint saves before a validation that is due at the same step, which a resumed run then
    skips; here such a checkpoint waits until the validation is over, so that a resumed run sees what the
    uninterrupted one saw. Checkpoints fall between optimizer steps only: no gradient is ever lost.
    """

    def __init__(self, folder: str | Path, *, every_n_steps: int | None = None) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise UserError(f"callbacks.checkpoints.every_n_steps is {every_n_steps}: must be 1 or more, or null")
        self.last, self.best = Path(folder) / "last", Path(folder) / "best"
        self._every_n_steps = every_n_steps
        self.best_value = math.inf
        self.best_step = 0
        self.validated_step = 0
        self._should_stop = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop at once where the run that is resumed had been stopped."""
        trainer.should_stop = trainer.should_stop or self._should_stop

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save between two steps, unless a validation comes first."""
        loop = trainer.fit_loop.epoch_loop
        finished_step = not loop._should_accumulate()
        fetcher = trainer.fit_loop._data_fetcher
        assert fetcher is not None
        validation_due = loop._should_check_val_fx(fetcher)
        due = self._every_n_steps is not None and trainer.global_step % self._every_n_steps == 0
        # The end of training, and without validation the end of an epoch, are the other moments.
        due = due or trainer.global_step == trainer.max_steps
        due = due or (loop.batch_progress.is_last_batch and not trainer.enable_validation)
        if finished_step and due and not validation_due:
            trainer.save_checkpoint(self.last)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the newest, and the best if this one is."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        value = float(trainer.callback_metrics[MONITOR])
        self.validated_step = trainer.global_step
        # Early stopping has decided by now, but Lightning does not keep what it decided.
        self._should_stop = trainer.should_stop
        improved = value < self.best_value
        if improved:
            self.best_value, self.best_step = value, trainer.global_step
            trainer.save_checkpoint(self.best)
        trainer.save_checkpoint(self.last)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know."""
        return {
            "best_value": self.best_value,
            "best_step": self.best_step,
            "validated_step": self.validated_step,
            "should_stop": self._should_stop,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.best_value, self.best_step = state_dict["best_value"], state_dict["best_step"]
        self.validated_step = state_dict["validated_step"]
        self._should_stop = state_dict["should_stop"]
