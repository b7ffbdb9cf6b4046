"""What ends a long run from outside, in words: no memory, no disk, a lost rank, a signal."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, final

import lightning.pytorch as pl
import psutil
import torch
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher, subprocess_script
from omegaconf import DictConfig

from glm_lightning.config import command
from glm_lightning.estimate.devices import shown
from glm_lightning.runs import RunFolder
from glm_lightning.training import expected
from glm_lightning.training.launching import launch
from glm_lightning.training.parts import Parts
from glm_lightning.types import UserError, whole_shape

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a disk without room answers."""

_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL", "gloo")
_NO_MEMORY = ("can't allocate memory", "Cannot allocate memory", "not enough memory", "out of memory")

GRACE = 3.0
"""Seconds between the loss of a rank and the end of one that hangs in waiting for it."""


@contextlib.contextmanager
def explained(config: DictConfig, folder: RunFolder, parts: Parts) -> Iterator[None]:
    """Turn what ends the block into a `UserError` that says what to change and how to go on."""
    try:
        with _Companions(folder, parts.trainer):
            yield
    except UserError:
        raise
    except MemoryError as error:
        raise UserError(_no_memory(config, parts, error)) from error
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise UserError(_no_room(folder, error)) from error
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _NO_MEMORY):
            raise UserError(_no_memory(config, parts, error)) from error
        if parts.trainer.world_size > 1 and any(words in str(error) for words in _LOST):
            raise UserError(_lost(folder, f"another rank is gone ({str(error).splitlines()[0]})")) from error
        raise


def how_to_resume(folder: RunFolder) -> str:
    """The command that goes on with a run."""
    return f"{command()} resume={folder.path}"


def _no_room(folder: RunFolder, error: OSError) -> str:
    free = shutil.disk_usage(folder.path).free / 2**20
    file = f"{error.filename}: " if error.filename else ""
    return (
        f"{file}{error.strerror}: the disk of {folder.path} has {free:,.1f} MiB free; make room, then go on with: "
        f"{how_to_resume(folder)}"
    )


def _lost(folder: RunFolder, what: str) -> str:
    return f"{what}; its own output says why. Go on from the last checkpoint with: {how_to_resume(folder)}"


def _no_memory(config: DictConfig, parts: Parts, error: BaseException) -> list[str]:
    """What happened with how much memory, and each change that needs less."""
    step, network = parts.method.step, parts.method.network
    first = str(error).splitlines()[0] if str(error) else type(error).__name__
    if network is None:
        doing, advice = "while the network was loaded", [*_smaller_weights(config, parts)]
    elif step.micro_batches:
        rows, width = step.micro_batches[-1][0].input_ids.shape
        doing = (
            f"at step {parts.trainer.global_step + 1} in a micro-batch of {rows} x {width} = {rows * width:,} positions"
        )
        advice = [*_smaller_micro_batches(config, parts, width), *_smaller_weights(config, parts)]
    else:
        doing = "between two steps, in validation or while test rows were answered"
        advice = [
            *_smaller_micro_batches(config, parts, None),
            f"evaluation.batch_size={max(1, config.evaluation.batch_size // 2)} (now {config.evaluation.batch_size})",
        ]
    return [f"out of memory {doing}: {first}", _memory(parts), "change one of: " + "; ".join(advice)]


def _memory(parts: Parts) -> str:
    device = parts.trainer.strategy.root_device
    trained = sum(whole_shape(p).numel() for p in parts.method.trained().values())
    numbers = f"{parts.source.num_parameters:,} parameters, {trained:,} of them trained"
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        peak = torch.cuda.max_memory_allocated(device)
        return f"{device}: {total / 2**30:.1f} GiB, peak {peak / 2**30:.1f}, free now {free / 2**30:.1f}; {numbers}"
    memory = psutil.virtual_memory()
    resident = psutil.Process().memory_info().rss
    return (
        f"this machine: {memory.total / 2**30:.1f} GiB, this process {resident / 2**30:.1f}, free now "
        f"{memory.available / 2**30:.1f}; {numbers}"
    )


def _smaller_micro_batches(config: DictConfig, parts: Parts, width: int | None) -> Iterator[str]:
    """The token budget first: a step split into more micro-batches is the same step."""
    data, now = config.data, parts.data.max_tokens
    most = max(parts.data.max_length, now // 2)
    fixed = config.trainer.accumulate_grad_batches != "auto"
    if most < now:
        auto = " with trainer.accumulate_grad_batches=auto" if fixed else ""
        need = _need(config, parts, most=most)
        yield f"data.max_tokens={most}{auto} (now {now}: positions of a micro-batch; the result stays the same{need})"
    if not config.model.get("gradient_checkpointing"):
        need = _need(config, parts, gradient_checkpointing=True)
        yield f"model.gradient_checkpointing=true (about a third slower; activations of one layer instead of all{need})"
    shorter = parts.data.max_length // 2
    longest = "" if width is None else f", the longest row here takes {width}"
    yield f"data.max_length={shorter} and data.max_tokens={min(most, shorter)} (now {data.max_length}{longest})"


def _smaller_weights(config: DictConfig, parts: Parts) -> Iterator[str]:
    name = config.method._target_.rpartition(".")[2].lower()
    if config.get("quantize") is None:
        need = _need(config, parts, quantize="nf4") if parts.method.on_quantized else ""
        held = config.model.get("dtype", "auto")
        yield f"method=qlora (now {name}: the frozen base in 4 bits instead of {held}{need})"
    if name in ("full", "freeze"):
        yield f"method=lora (now {name}: gradients and two averages for the adapter's parameters only)"


def _need(config: DictConfig, parts: Parts, *, most: int | None = None, **changes: Any) -> str:
    """What tensors would take with other settings of the model, or with micro-batches of ``most`` positions."""
    try:
        now = expected.of_run(config, parts).memory.peak
        then = expected.of_run(config, parts, source=replace(parts.source, **changes), most=most).memory.peak
    except Exception:  # what went wrong is being told already
        return ""
    return f"; tensors would take about {shown(then)} instead of {shown(now)}" if then < now else "; saves nothing here"


@final
class _Companions(threading.Thread):
    """Ends this process, in words, if another of the ranks that Lightning started is gone and this one hangs.

    A rank in a collective operation of NCCL waits for a lost one for many minutes; Lightning kills the first rank
    without a word when a child of it fails, and children whose first rank is gone not at all.
    """

    def __init__(self, folder: RunFolder, trainer: pl.Trainer) -> None:
        super().__init__(daemon=True, name="companions")
        self._folder = folder
        self._launcher: Any = trainer.strategy.launcher
        self._is_first, self._parent = trainer.is_global_zero, os.getppid()
        self._ended = threading.Event()

    def __enter__(self) -> None:
        if isinstance(self._launcher, _SubprocessScriptLauncher):
            self._theirs = subprocess_script._launch_process_observer
            subprocess_script._launch_process_observer = _nothing  # type: ignore[assignment]
            self.start()

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        self._ended.set()
        if isinstance(self._launcher, _SubprocessScriptLauncher):
            subprocess_script._launch_process_observer = self._theirs
            if kind is not None:
                self._end_children()

    def run(self) -> None:
        """Look twice a second."""
        while not self._ended.wait(0.5):
            if (what := self._gone()) is not None:
                if not self._ended.wait(GRACE):
                    print(f"error: {_lost(self._folder, what)}", file=sys.stderr, flush=True)
                    self._end()
                return

    def _gone(self) -> str | None:
        procs: list[Any] = self._launcher.procs
        codes = {rank: process.poll() for rank, process in enumerate(procs, start=1)}
        failed = [
            f"rank {rank} (process {procs[rank - 1].pid}) ended with {code}" for rank, code in codes.items() if code
        ]
        if failed:
            return ", ".join(failed)
        if os.getppid() == self._parent:
            return None
        if launch() is not None:
            return "what has started this rank is gone"
        return None if self._is_first else "the first rank is gone"

    def _end(self) -> None:
        self._end_children()
        os._exit(1)

    def _end_children(self) -> None:
        for process in self._launcher.procs:
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()


def _nothing(_: Any) -> None:
    pass
