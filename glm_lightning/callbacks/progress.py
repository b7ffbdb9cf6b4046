"""Progress in optimizer steps: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from datetime import timedelta
from typing import Any, final

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

_SHOWN = {"train/loss": "loss {:.4f}", "train/lr": "lr {:.2e}", "speed/tokens_per_s": "{:,.0f} tokens/s"}
_VALIDATION = "val/loss"


@final
class StepProgress(ProgressBar):
    """Shows step of all steps, loss, learning rate, tokens a second and the time that remains.

    Lightning's own bars count micro-batches. Loss, learning rate and speed are those logged last. ``every_n_steps``:
    steps between two lines where the output is no terminal (None: some 20 lines in all, each of a step that was
    logged); each validation writes one, too.
    """

    def __init__(self, *, every_n_steps: int | None = None) -> None:
        super().__init__()
        self._every_n_steps = every_n_steps
        self._enabled = True
        self._display: _Display | None = None
        self._started = 0.0
        self._first_step = self._last_step = self._epoch = 0

    def enable(self) -> None:
        """Show progress."""
        self._enabled = True

    def disable(self) -> None:
        """Show nothing. Lightning calls this on all ranks but the first."""
        self._enabled = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin, at a step above 0 where a run is resumed."""
        self._started = time.perf_counter()
        self._first_step = self._last_step = trainer.global_step
        if self._enabled:
            total, console = _total_steps(trainer), Console(highlight=False)
            logged = max(1, trainer.log_every_n_steps)  # type: ignore[attr-defined]
            self._display = _Bar(total, console) if console.is_terminal else _Lines(total, self._every_n_steps, logged)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the epoch: Lightning has counted on when the last step is shown."""
        self._epoch = trainer.current_epoch

    # A step is shown from the hook that follows it: the module logs after the callbacks' on_train_batch_end.

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Show the step before."""
        self._show(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the step before."""
        self._show(trainer)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Show how far validation is."""
        if self._display:
            self._display.validating(f"validation {batch_idx + 1}/{trainer.num_val_batches[dataloader_idx]}")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave a line with the validation loss."""
        if self._display and _VALIDATION in trainer.callback_metrics:
            value = float(trainer.callback_metrics[_VALIDATION])
            self._display.note(f"step {trainer.global_step}: {_VALIDATION} {value:.4f}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show where training ended."""
        if self._display:
            self._display.show(trainer.global_step, self._text(trainer))
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the terminal back."""
        self._close()

    def _show(self, trainer: Trainer) -> None:
        step = trainer.global_step
        if self._display and step != self._last_step and self._display.due(step):
            self._display.show(step, self._text(trainer))
        self._last_step = step

    def _close(self) -> None:
        if self._display:
            self._display.close()
        self._display = None

    def _text(self, trainer: Trainer) -> str:
        # Reads metrics, so waits for the device: hence only for steps that are shown.
        metrics = trainer.callback_metrics
        values = [form.format(float(metrics[name])) for name, form in _SHOWN.items() if name in metrics]
        return "  ".join([f"epoch {self._epoch + 1}", *values, *self._remaining(trainer)])

    def _remaining(self, trainer: Trainer) -> list[str]:
        total, done = _total_steps(trainer), trainer.global_step - self._first_step
        if total is None or not 0 < done < total - self._first_step:
            return []
        elapsed = time.perf_counter() - self._started
        return [f"{timedelta(seconds=round(elapsed / done * (total - trainer.global_step)))} left"]


class _Display(ABC):
    @abstractmethod
    def due(self, step: int) -> bool:
        """Whether this step is shown: making its text costs time."""

    @abstractmethod
    def show(self, step: int, text: str) -> None: ...

    @abstractmethod
    def validating(self, text: str) -> None: ...

    @abstractmethod
    def note(self, text: str) -> None:
        """Write a line that stays."""

    @abstractmethod
    def close(self) -> None: ...


@final
class _Bar(_Display):
    """A bar that redraws itself, at most four times a second."""

    _SECONDS = 0.25

    def __init__(self, total: int | None, console: Console) -> None:
        columns = (BarColumn(bar_width=24), TextColumn("{task.description}"))
        # Drawn where something changed: a refresh thread would draw the same again.
        self._progress = Progress(*columns, console=console, auto_refresh=False)
        self._total = total
        self._task = self._progress.add_task("", total=total)
        self._drawn = -math.inf
        self._progress.start()

    def due(self, step: int) -> bool:
        return time.perf_counter() - self._drawn >= self._SECONDS

    def show(self, step: int, text: str) -> None:
        self._draw(f"{_of(step, self._total)}  {text}", step)

    def validating(self, text: str) -> None:
        if self.due(0):
            self._draw(text, None)

    def note(self, text: str) -> None:
        self._progress.console.print(text)

    def close(self) -> None:
        self._progress.stop()

    def _draw(self, text: str, step: int | None) -> None:
        self._drawn = time.perf_counter()
        self._progress.update(self._task, completed=step, description=text, refresh=True)


@final
class _Lines(_Display):
    """Lines for a file or a pipe."""

    _LINES = 20
    _EVERY = 50  # where the end is not known

    def __init__(self, total: int | None, every_n_steps: int | None, logged_every: int) -> None:
        self._total = total
        wanted = self._EVERY if total is None else total // self._LINES
        # rounded up to steps that are logged: any other would repeat what the line before it says
        self._every = every_n_steps or max(1, math.ceil(wanted / logged_every)) * logged_every
        self._written: int | None = None

    def due(self, step: int) -> bool:
        return step % self._every == 0

    def show(self, step: int, text: str) -> None:
        if step != self._written:
            self._written = step
            print(f"step {_of(step, self._total)}  {text}", flush=True)

    def validating(self, text: str) -> None:
        pass

    def note(self, text: str) -> None:
        print(text, flush=True)

    def close(self) -> None:
        pass


def _total_steps(trainer: Trainer) -> int | None:
    total = trainer.estimated_stepping_batches
    return int(total) if 0 <= total < math.inf else None


def _of(step: int, total: int | None) -> str:
    return f"{step}" if total is None else f"{step}/{total}"
