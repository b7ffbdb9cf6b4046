"""What a run prints: what it is, how it went, and what to do next."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from omegaconf import DictConfig
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from glm_lightning.config import command
from glm_lightning.estimate.devices import shown
from glm_lightning.evaluation import Record
from glm_lightning.models.quiet import quiet as quiet_loading
from glm_lightning.runs import RunFolder
from glm_lightning.strategies import Sharded
from glm_lightning.training.examination import Examination, spread
from glm_lightning.training.expected import Expected
from glm_lightning.training.parts import Parts
from glm_lightning.types import whole_shape

IGNORED_WARNINGS = (
    "The '.*_dataloader' does not have many workers",  # reading is a lookup in a memory map
    "You're resuming from a checkpoint that ended before the epoch ended",  # the plan skips what is done
    "The number of training batches .* is smaller than the logging interval",
    "It is recommended to use `self.log\\(.*sync_dist=True\\)`",  # what is logged is the sum over all ranks already
    "`isinstance\\(treespec, LeafSpec\\)` is deprecated",  # lightning 2.6 against torch 2.13
    "Found .* module\\(s\\) in eval mode at the start of training",
    "`torch.distributed.all_gather_into_tensor` is deprecated",  # deepspeed 0.19 against torch 2.13
    "`torch.distributed.reduce_scatter_tensor` is deprecated",
)
"""Warnings of Lightning about what is meant here, and of libraries about each other."""


def quiet() -> None:
    """Silence notices of the libraries that repeat what a run says itself."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    quiet_loading()


@contextmanager
def named_warnings_ignored() -> Iterator[None]:
    """Ignore `IGNORED_WARNINGS` while the block runs, and no others."""
    with warnings.catch_warnings():
        for message in IGNORED_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        yield


def opening(
    config: DictConfig, parts: Parts, folder: RunFolder, checkpoint: Path | None, *, expected: Expected | None
) -> None:
    """Print what runs, and what it is expected to take."""
    splits, plan, trainer = parts.data.splits, parts.plan, parts.trainer
    source, devices = parts.source, trainer.num_devices * trainer.num_nodes
    lines = {
        "model": f"{source.path} ({source.config.model_type}, {source.num_parameters:,} parameters)",
        "method": f"{type(parts.method).__name__} ({knobs(config.method)})",
        "data": f"{_count(splits.train)} train, {_count(splits.val)} validation, {_count(splits.test)} test rows"
        + (" (encoded before)" if splits.train.cached else ""),
        "template": parts.template.name,
        "precision": f"{parts.precision.name}: {parts.precision.reason}",
        "devices": f"{devices} x {type(trainer.accelerator).__name__.removesuffix('Accelerator')}",
        "batch": f"{plan.batch_size} samples an optimizer step = {plan.world_size} device(s) x {plan.accumulate} "
        f"micro-batch(es) of at most {plan.max_tokens:,} tokens",
        "steps": f"{parts.num_steps:,} optimizer step(s), {plan.num_steps:,} an epoch",
        "run": _shown(folder.path),
    }
    if expected is not None:
        lines["memory"] = _memory(expected)
    if plan.world_size > 1:
        waiting = plan.waiting(in_step=isinstance(trainer.strategy, Sharded))
        lines["balance"] = f"a rank waits {waiting:.1%} of its time for the others, by padded positions"
    if checkpoint is not None:
        lines["resumed"] = f"from {_shown(checkpoint)}"
    elif config.resume not in (None, "auto"):
        lines["resumed"] = "no checkpoint was written yet: starts at the first step"
    table = Table.grid(padding=(0, 2))
    for name, value in lines.items():
        table.add_row(f"[bold]{name}", value)
    console = Console()
    console.print(Panel(table, title="glm_lightning", title_align="left", expand=False))
    notices = [] if expected is None or expected.fits else [_too_much(expected)]
    for notice in [*notices, *splits.notices]:
        console.print(f"note: {notice}", highlight=False, markup=False)


def _memory(expected: Expected) -> str:
    memory = expected.memory
    parts = {
        "weights": memory.weights + memory.beside,
        "gradients": memory.gradients,
        "optimizer": memory.optimizer,
        "activations": memory.activations,
        "output layer": memory.head,
    }
    each = ", ".join(f"{name} {shown(size)}" for name, size in parts.items())
    kept = (
        f"; up to {shown(expected.at_most)} with freed blocks that are kept" if expected.at_most > expected.peak else ""
    )
    return (
        f"about {shown(expected.peak)} of {shown(expected.device.size)} at the peak, in the {memory.when} "
        f"({each}){kept}"
    )


def _too_much(expected: Expected) -> str:
    return (
        f"the run is expected to need {shown(expected.peak)}, and {expected.device.name} has "
        f"{shown(expected.device.size)}; glm plan with the same arguments shows what fits"
    )


def trainable(trainer: pl.Trainer, method: Any) -> None:
    """Print how much of the network is trained, and what its method has to say of it; known once it is built."""
    if not trainer.is_global_zero:
        return
    trained = sum(whole_shape(p).numel() for p in method.parameters() if p.requires_grad)
    total = sum(whole_shape(p).numel() for p in method.parameters())
    console = Console()
    console.print(f"{trained:,} of {total:,} parameters are trained ({trained / total:.2%})", highlight=False)
    for notice in method.notices:
        console.print(f"note: {notice}", highlight=False, markup=False)


def interrupted(folder: RunFolder, trainer: pl.Trainer) -> None:
    """Print how to go on with a run that the user has stopped."""
    if trainer.is_global_zero:
        kept = "its last checkpoint" if folder.last.is_dir() else "the first step, as no checkpoint was written yet"
        console = Console()
        console.print(f"\nStopped. It goes on from {kept} with:", highlight=False)
        console.print(f"  {command()} resume={_shown(folder.path)}", highlight=False, soft_wrap=True)


def closing(
    config: DictConfig,
    report: dict[str, Any],
    examination: Examination,
    folder: RunFolder,
    artefact: str,
    *,
    told: Collection[str],
) -> None:
    """Print scores and sample answers before and after, where the run lies, and what to try next.

    Notices that were ``told`` at the start are counted only.
    """
    console = Console()
    if report["metrics"]:
        console.print(_scores(report))
    for name, found in report["forgetting"].items():
        console.print(
            f"{name}: {found['verdict']} (loss {found['before']:.4g}, now {found['after']:.4g})", highlight=False
        )
    samples = config.evaluation.samples
    if examination.answers_after and samples:
        console.print(_side_by_side(examination.answers_before, examination.answers_after, samples))
    run = _shown(folder.path)
    speed = (
        f"{report['tokens_per_s']:,.0f} tokens/s, peak memory {report['peak_gib']:.2f} GiB"
        if report["tokens_per_s"]
        else ""
    )
    console.print(f"{report['steps']} steps. {speed}", highlight=False)
    for notice in report["notices"]:
        if notice not in told:
            console.print(f"note: {notice}", highlight=False, markup=False)
    if told:
        console.print(f"{len(told)} note(s) on the data, as at the start, are in {run}/report.json", highlight=False)
    console.print(
        f"The run lies in [bold]{run}[/bold], the {artefact} in [bold]{run}/{artefact}[/bold].", highlight=False
    )
    console.print("Next:")
    for line, what in (
        (f"glm chat {run}", "talk to it"),
        (f"tensorboard --logdir {config.outputs}", "look at the curves"),
        (f"{command()} -m method=lora,full", "compare methods"),
    ):
        console.print(f"  {line:<60} [dim]# {what}", highlight=False, soft_wrap=True)


def _scores(report: dict[str, Any]) -> Table:
    table = Table(title="scores", title_justify="left")
    table.add_column("")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    for name, after in report["metrics"].items():
        before = report["before"].get(name)
        table.add_row(name, "" if before is None else f"{before:.4g}", f"{after:.4g}")
    return table


def _side_by_side(before: list[Record], after: list[Record], count: int) -> Table:
    table = Table(title="answers to test rows", title_justify="left", show_lines=True)
    for name in ("asked", "before", "after"):
        table.add_column(name, overflow="fold", ratio=1)
    # A resumed run may answer other rows than it did at its start.
    known = {(answer["origin"], answer["prompt"]): answer["answer"] for answer in before}
    for answer in spread(after, count):
        old = known.get((answer["origin"], answer["prompt"]), "")
        table.add_row(answer["prompt"], old, answer["answer"])
    return table


def knobs(node: DictConfig) -> str:
    """The keys and values of a node, on one line."""
    return ", ".join(f"{key!s}={value}" for key, value in node.items() if not str(key).startswith("_"))


def _count(dataset: Any) -> str:
    """The rows of a part, and the samples that they make where that is another number."""
    if dataset is None:
        return "no"
    return f"{dataset.num_rows:,}" + (f" ({len(dataset):,} samples)" if len(dataset) != dataset.num_rows else "")


def _shown(path: Path) -> str:
    """A path as short as it stays true."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
