"""One run from a composed configuration to a finished run folder."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import DictConfig, OmegaConf

from glm_lightning import config as configuration
from glm_lightning.callbacks import Throughput
from glm_lightning.files import write_json
from glm_lightning.runs import RunFolder
from glm_lightning.training import console, resuming
from glm_lightning.training.artefact import leave_artefact
from glm_lightning.training.build import build
from glm_lightning.training.parts import Parts
from glm_lightning.types import UserError

PROVIDED = {
    "method": {"ingredients"},
    "trainer": {"callbacks", "logger", "plugins"},
}
"""Arguments that a run gives itself, so that no yaml has to."""

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
    config = resuming.resolve(config, overrides)
    config.run_dir = str(_run_dir(config))
    folder = RunFolder(Path(config.run_dir))
    configuration.check(with_autos_set(config), provided=PROVIDED)
    parts = build(config, folder)
    pl.seed_everything(config.seed, verbose=False)
    checkpoint = folder.last if folder.last.is_dir() else None
    if parts.trainer.is_global_zero:
        _begin(config, folder, parts)
        console.opening(config, parts, folder, checkpoint)
    with console.named_warnings_ignored():
        parts.trainer.fit(parts.method, datamodule=parts.data, ckpt_path=checkpoint)
    return _finish(config, folder, parts)


def _run_dir(config: DictConfig) -> Path:
    child = int(os.environ.get("LOCAL_RANK", 0)) > 0
    if config.run_dir is not None:
        chosen = Path(config.run_dir).absolute()
        if config.resume is None and not child and (chosen / "config.yaml").exists():
            raise UserError(f"run_dir is {config.run_dir!r}: a run lies there already; give resume={config.run_dir}")
        return chosen
    if child and CHILD_RUN_DIR in os.environ:
        return Path(os.environ[CHILD_RUN_DIR])
    if "TORCHELASTIC_RUN_ID" in os.environ or int(os.environ.get("SLURM_NTASKS", 1)) > 1:
        raise UserError("run_dir is null: ranks that are started from outside must share one folder; give run_dir=...")
    method = config.method._target_.rpartition(".")[2].lower()
    name = config.name or f"{Path(str(config.model.path)).name}_{method}"
    chosen = Path(config.outputs).absolute() / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_{name}"
    os.environ[CHILD_RUN_DIR] = str(chosen)
    return chosen


def with_autos_set(config: DictConfig) -> DictConfig:
    """The configuration with a stand-in for every ``auto`` that is ours and not Lightning's."""
    checked = config.copy()
    if checked.trainer.accumulate_grad_batches == "auto":
        checked.trainer.accumulate_grad_batches = 1
    if checked.trainer.precision == "auto":
        checked.trainer.precision = "32-true"
    return checked


def _begin(config: DictConfig, folder: RunFolder, parts: Parts) -> None:
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"run_dir is {str(folder.path)!r}: cannot be made: {error.strerror}") from error
    configuration.save(config, folder.config)
    folder.write_environment()
    folder.report.unlink(missing_ok=True)
    write_json(folder.data, parts.data.description())
    for logger in parts.trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            lengths = torch.from_numpy(parts.data.splits.train.lengths.copy())
            logger.experiment.add_histogram("data/lengths", lengths, global_step=0)


def _finish(config: DictConfig, folder: RunFolder, parts: Parts) -> Run:
    examination = parts.examination
    callbacks: list[Callback] = parts.trainer.callbacks  # type: ignore[attr-defined]
    throughput = next((callback for callback in callbacks if isinstance(callback, Throughput)), None)
    if parts.trainer.is_global_zero:
        report = {
            "before": examination.before,
            "metrics": examination.after,
            "steps": parts.trainer.global_step,
            "tokens_per_s": throughput.tokens_per_s if throughput else None,
            "peak_gib": throughput.peak_gib if throughput else None,
            "train_seconds": throughput.seconds if throughput else None,
            "trained_parameters": sum(p.numel() for p in parts.method.trained().values()),
            "notices": parts.data.splits.notices,
        }
        leave_artefact(config, folder, parts.method, parts.tokenizer, parts.template, report)
        _log_end(config, parts)
        write_json(folder.report, report)
        console.closing(config, report, examination, folder, parts.method.artefact)
    return Run(folder.path, examination.after, config)


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
