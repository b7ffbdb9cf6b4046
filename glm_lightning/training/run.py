"""One run from a composed configuration to a finished run folder."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import lightning.pytorch as pl
import psutil
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.seed import isolate_rng
from omegaconf import DictConfig, OmegaConf

from glm_lightning import __version__
from glm_lightning import config as configuration
from glm_lightning.callbacks import Throughput
from glm_lightning.files import digest, lock, write_json
from glm_lightning.runs import RunFolder, checkpoints
from glm_lightning.training import console, expected, failures, forgetting, heap, launching, resuming, starting
from glm_lightning.training.artefact import leave_artefact, put_together
from glm_lightning.training.build import build
from glm_lightning.training.parts import Parts
from glm_lightning.types import UserError

PROVIDED = {
    "method": {"ingredients"},
    "trainer": {"callbacks", "logger", "plugins"},
}
"""Arguments that a run gives itself, so that no yaml has to."""

NOWHERE = ((None, None), (None, "auto"))
"""Values of ``run_dir`` and ``resume`` that leave the folder to the time of day."""

CHILD_RUN_DIR = "GLM_LIGHTNING_RUN_DIR"
"""Tells the ranks that Lightning starts which folder the first one chose."""


@dataclass(frozen=True)
class Run:
    """A finished run."""

    path: Path
    metrics: dict[str, float]
    config: DictConfig


def run(config: DictConfig, *, overrides: Sequence[str] = ()) -> Run:
    """Fine-tune as ``config`` says; ``overrides`` are the command line's, which a resumed run needs apart.

    Raises:
        UserError: whatever is wrong with configuration or data, all of it, before the network is loaded.
    """
    console.quiet()
    launched = launching.launch()
    of_first = _folder_of_first() if launched is None else None
    if launched is not None and launched.world_size > 1 and (config.run_dir, config.resume) in NOWHERE:
        raise UserError(f"run_dir is null: ranks that {launched.by} starts must share one folder; give run_dir=...")
    restarted = launched is not None and launched.restarts > 0
    config = resuming.resolve(config, overrides, of_first=of_first, restarted=restarted)
    config.run_dir = str(of_first or _run_dir(config))
    os.environ[CHILD_RUN_DIR] = config.run_dir
    config = starting.replayed(starting.resolve(config, overrides))
    folder = RunFolder(Path(config.run_dir))
    configuration.check(with_autos_set(config), provided=PROVIDED)
    parts = build(config, folder)
    heap.keep_fewer_kernels(parts.data.max_tokens)
    pl.seed_everything(config.seed, verbose=False)
    with _owned(folder, is_first=parts.trainer.is_global_zero), console.named_warnings_ignored():
        checkpoint = launching.of_first(parts.trainer, lambda: _checkpoint(folder, parts))
        launching.agree(parts.trainer, **_facts(parts))
        expected_of_run = _expected(config, parts)
        if parts.trainer.is_global_zero:
            _begin(config, folder, parts)
            console.opening(config, parts, folder, checkpoint, expected=expected_of_run)
        try:
            with failures.explained(config, folder, parts):
                parts.trainer.fit(parts.method, datamodule=parts.data, ckpt_path=checkpoint)
        except SystemExit:  # a signal, or what Lightning makes of Ctrl-C
            console.interrupted(folder, parts.trainer)
            raise
        return _finish(config, folder, parts)


def _expected(config: DictConfig, parts: Parts) -> expected.Expected | None:
    """What the run will take; a network that cannot be followed without its weights stops nobody.

    The first rank asks, and on a CPU each one that torchrun or SLURM has started, as each has a heap of its own; those
    that Lightning starts do as the first.
    """
    on_cpu = parts.trainer.strategy.root_device.type == "cpu"
    if not (parts.trainer.is_global_zero or (on_cpu and launching.launch() is not None)):
        return None
    with isolate_rng():  # what it builds draws numbers, which the other ranks do not; an error must not leave it
        try:
            found = expected.of_run(config, parts)
        except Exception as error:
            parts.method.notices.append(f"memory could not be estimated: {type(error).__name__}: {error}")
            return None
    free = psutil.virtual_memory().available / parts.trainer.num_devices
    if on_cpu and found.at_most - found.device.beside > free and heap.give_back_large_blocks():
        parts.method.notices.append("memory is short: freed blocks go back to the system at once, which costs speed")
    return found


def _checkpoint(folder: RunFolder, parts: Parts) -> Path | None:
    """The checkpoint to go on from; one that will not do is told, and put out of the way of the next."""
    is_first = parts.trainer.is_global_zero
    if is_first:
        checkpoints.settle(folder.last.parent)
    base, method = parts.source.fingerprint, type(parts.method).__name__
    checkpoint, refused = checkpoints.newest_whole(folder.last.parent, base=base, method=method)
    parts.method.notices += [f"{problem}; went on from {checkpoint}" for problem in refused]
    if is_first and refused and folder.last.is_dir():
        shutil.rmtree(folder.refused, ignore_errors=True)
        folder.last.rename(folder.refused)
    return checkpoint


def _facts(parts: Parts) -> dict[str, str]:
    """What must be the same on every machine."""
    return {"model": parts.source.fingerprint, "data": digest(parts.data.state_dict()), "glm_lightning": __version__}


@contextlib.contextmanager
def _owned(folder: RunFolder, *, is_first: bool) -> Iterator[None]:
    """Keep a second process from writing into a folder that is being run in."""
    if not is_first:
        yield
        return
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        owned = contextlib.ExitStack()
        owned.enter_context(lock(folder.lock, timeout=0))
    except TimeoutError:
        raise UserError(
            f"run_dir is {str(folder.path)!r}: another process is running in it; wait for its end"
        ) from None
    except OSError as error:
        raise UserError(f"run_dir is {str(folder.path)!r}: cannot be made: {error.strerror}") from error
    with owned:
        yield


def _folder_of_first() -> Path | None:
    """The folder that the first rank has chosen, where this is a rank that it has started."""
    is_child = rank_zero_only.rank > 0  # type: ignore[attr-defined]
    return Path(os.environ[CHILD_RUN_DIR]) if is_child and CHILD_RUN_DIR in os.environ else None


def _run_dir(config: DictConfig) -> Path:
    if config.run_dir is not None:
        chosen = Path(config.run_dir).absolute()
        is_first = rank_zero_only.rank == 0  # type: ignore[attr-defined]
        if config.resume is None and is_first and (chosen / "config.yaml").exists():
            raise UserError(f"run_dir is {config.run_dir!r}: a run lies there already; give resume={config.run_dir}")
        return chosen
    method = config.method._target_.rpartition(".")[2].lower()
    name = config.name or f"{Path(str(config.model.path)).name}_{method}"
    if not name.startswith(config.model.name_prefix):
        name = config.model.name_prefix + name
    wanted = Path(config.outputs).absolute() / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_{name}"
    # two starts within a second get folders of their own
    others = (wanted.with_name(f"{wanted.name}_{number}") for number in itertools.count(2))
    return next(folder for folder in itertools.chain([wanted], others) if not folder.exists())


def with_autos_set(config: DictConfig) -> DictConfig:
    """The configuration with a stand-in for every ``auto`` that is ours and not Lightning's."""
    checked = config.copy()
    if checked.trainer.accumulate_grad_batches == "auto":
        checked.trainer.accumulate_grad_batches = 1
    if checked.trainer.num_nodes == "auto":
        checked.trainer.num_nodes = 1
    if checked.trainer.precision == "auto":
        checked.trainer.precision = "32-true"
    return checked


def _begin(config: DictConfig, folder: RunFolder, parts: Parts) -> None:
    configuration.save(config, folder.config)
    folder.write_environment()
    folder.report.unlink(missing_ok=True)
    write_json(folder.data, parts.data.description())
    if before := starting.ancestors(config):
        write_json(folder.ancestors, before)
    parts.data.write_quarantine(folder.quarantine)
    for logger in parts.trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            lengths = torch.from_numpy(parts.data.splits.train.lengths.copy())
            logger.experiment.add_histogram("data/lengths", lengths, global_step=0)
            logger.experiment.add_text("data/faults", parts.data.splits.fault_table(), global_step=0)


def _finish(config: DictConfig, folder: RunFolder, parts: Parts) -> Run:
    examination = parts.examination
    callbacks: list[Callback] = parts.trainer.callbacks  # type: ignore[attr-defined]
    throughput = next((callback for callback in callbacks if isinstance(callback, Throughput)), None)
    put_together(parts.method)
    if parts.trainer.is_global_zero:
        report = {
            "before": examination.before,
            "metrics": examination.after,
            "weights": examination.taken,
            "forgetting": forgetting.verdicts(examination.before, examination.after),
            "steps": parts.trainer.global_step,
            "precision": parts.precision.name,
            "tokens_per_s": throughput.tokens_per_s if throughput else None,
            "peak_gib": throughput.peak_gib if throughput else None,
            "train_seconds": throughput.seconds if throughput else None,
            "trained_parameters": sum(p.numel() for p in parts.method.trained().values()),
            "notices": _notices(parts),
            "faults": parts.data.faults(),
        }
        leave_artefact(config, folder, parts, report)
        written = folder.artefact(parts.method.artefact).glob("*.safetensors")
        report["written_bytes"] = sum(file.stat().st_size for file in written)
        _log_end(config, parts)
        write_json(folder.report, report)
        told = parts.data.splits.notices
        console.closing(config, report, examination, folder, parts.method.artefact, told=told)
    return Run(folder.path, examination.after, config)


def _notices(parts: Parts) -> list[str]:
    skipped = parts.method.num_skipped_steps
    of_training = [f"{skipped} step(s) were skipped: their gradients were not finite"] if skipped else []
    return [*parts.data.splits.notices, *parts.method.notices, *of_training]


def _log_end(config: DictConfig, parts: Parts) -> None:
    """Fill TensorBoard's HPARAMS tab and its texts."""
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    flat = {
        f"{group}/{key}": value
        for group in ("model", "method", "data", "trainer", "optimizer", "scheduler")
        for key, value in plain[group].items()
        if isinstance(value, str | int | float | bool)
    }
    for logger in parts.trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(flat, {f"final/{name}": value for name, value in parts.examination.after.items()})
            logger.finalize("success")
