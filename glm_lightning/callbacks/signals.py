"""Signals that end a run: the step is finished, a checkpoint is written, and all ranks stop together."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from types import FrameType
from typing import Any, final

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.environments import SLURMEnvironment
from torch import Tensor
from torch.distributed import ReduceOp, Work, all_reduce


@final
class Stopped(SystemExit):
    """A run that a signal has ended behind a checkpoint; the first rank's exit code is the shell's, 128 + signal.

    The other ranks end with 0: Lightning kills a first rank whose children fail.
    """

    def __init__(self, signum: int, *, is_first: bool) -> None:
        self.signal = signal.Signals(signum)
        super().__init__(128 + signum if is_first else 0)


@final
class StopSignals:
    """SIGTERM, and SLURM's signal before a job's time is up (SIGUSR1), seen by all ranks at the same step.

    A signal may reach one rank, or each at another step. So the ranks' signals are reduced to their largest with every
    optimizer step, behind its backward pass, and the result is read a step later, when it is long there. Lightning's
    own handlers are replaced: they talk to other ranks from inside whatever the process is doing, and SLURM's writes
    its checkpoint in the middle of a step.
    """

    def __init__(self) -> None:
        self.agreed = 0
        """The signal that all ranks know of."""
        self._received = 0
        self._reduced: tuple[Tensor, Work] | None = None

    def install(self, trainer: pl.Trainer) -> None:
        """Take over from Lightning's handlers; it puts back what was there before them when it ends."""
        self.agreed, self._reduced = 0, None
        # what came while the first examination ran
        self._received = signal.SIGTERM if trainer.received_sigterm else 0
        if threading.current_thread() is not threading.main_thread():
            return
        signal.signal(signal.SIGTERM, self._receive)
        environment = _slurm(trainer)
        if environment is not None and environment.requeue_signal is not None:
            signal.signal(environment.requeue_signal, self._receive)
        # Lightning would broadcast and read its own flag with every micro-batch.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _nothing  # type: ignore[method-assign]

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        self._received = max(self._received, signum)

    def exchange(self, trainer: pl.Trainer) -> None:
        """Once an optimizer step: learn what was sent before the step before."""
        if trainer.world_size == 1:
            self.agreed = self._received
            return
        if self._reduced is not None:
            signum, work = self._reduced
            work.wait()
            self.agreed = int(signum)
        signum = torch.tensor(self._received, device=trainer.strategy.root_device)
        self._reduced = signum, all_reduce(signum, op=ReduceOp.MAX, async_op=True)

    def exchange_now(self, trainer: pl.Trainer) -> None:
        """Learn what was sent so far, and wait for it."""
        self.exchange(trainer)
        if trainer.world_size > 1:
            self.exchange(trainer)

    def stop(self, trainer: pl.Trainer) -> None:
        """End this rank; a job that SLURM is about to end is put back into its queue first."""
        environment = _slurm(trainer)
        if trainer.is_global_zero and environment is not None and self.agreed == environment.requeue_signal:
            _requeue()
        raise Stopped(self.agreed, is_first=trainer.is_global_zero)


def _slurm(trainer: pl.Trainer) -> SLURMEnvironment | None:
    """SLURM, where Lightning is to put jobs back into its queue."""
    environment: Any = trainer._accelerator_connector.cluster_environment
    return environment if isinstance(environment, SLURMEnvironment) and environment.auto_requeue else None


def _requeue() -> None:
    job, task = os.environ["SLURM_JOB_ID"], os.environ.get("SLURM_ARRAY_TASK_ID")
    name = job if task is None else f"{os.environ['SLURM_ARRAY_JOB_ID']}_{task}"
    subprocess.run(["scontrol", "requeue", name], check=True)


def _nothing() -> None:
    pass
