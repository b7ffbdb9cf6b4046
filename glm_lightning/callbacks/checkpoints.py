"""When a checkpoint is written: the best by validation loss, the newest, and the one before it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, final

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint

from glm_lightning.callbacks.signals import StopSignals
from glm_lightning.runs.checkpoints import BEST, LAST, PREVIOUS, set_aside
from glm_lightning.types import UserError

MONITOR = "val/loss"
"""What the best checkpoint has least of."""


@final
class BestAndLast(Checkpoint):
    """Writes ``last`` every ``every_n_steps`` optimizer steps and after every validation, ``best`` when it improves.

    Lightning's ModelCheckpoint saves before a validation that is due at the same step, which a resumed run then
    skips; here such a checkpoint waits until the validation is over, so that a resumed run sees what the
    uninterrupted one saw. Checkpoints fall between optimizer steps only: no gradient is ever lost. A signal that ends
    the run (`StopSignals`) is obeyed behind a checkpoint.

    Args:
        folder: where the checkpoints lie.
        every_n_steps: optimizer steps between two of them; None: after validations only.
        keep_previous: keep the one before ``last``, too.
    """

    def __init__(self, folder: str | Path, *, every_n_steps: int | None = None, keep_previous: bool = True) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise UserError(f"callbacks.checkpoints.every_n_steps is {every_n_steps}: must be 1 or more, or null")
        self.last, self.best, self._previous = (Path(folder) / name for name in (LAST, BEST, PREVIOUS))
        self._every_n_steps, self._keep_previous = every_n_steps, keep_previous
        self.best_value = math.inf
        self.best_step = 0
        self.validated_step = 0
        self._should_stop = False
        self._signals = StopSignals()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop at once where the run that is resumed had been stopped."""
        trainer.should_stop = trainer.should_stop or self._should_stop
        self._signals.install(trainer)

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        """Hear what other ranks were told."""
        self._signals.exchange(trainer)

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
        if finished_step and (due or self._signals.agreed) and not validation_due:
            self._save_last(trainer)
            if self._signals.agreed:
                self._signals.stop(trainer)

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
        self._save_last(trainer)
        self._signals.exchange_now(trainer)
        if self._signals.agreed:
            self._signals.stop(trainer)

    def _save_last(self, trainer: pl.Trainer) -> None:
        if self._keep_previous and trainer.is_global_zero and self.last.is_dir():
            set_aside(self.last, self._previous)
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
