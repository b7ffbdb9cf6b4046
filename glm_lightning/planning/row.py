"""What one method takes on one device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hydra.utils import get_class
from omegaconf import DictConfig

from glm_lightning.estimate.devices import Device
from glm_lightning.estimate.fitting import Fit, fit, on_devices
from glm_lightning.models import Source
from glm_lightning.objectives.base import Objective
from glm_lightning.training import placing
from glm_lightning.training.expected import STEPS, Expected, Work, memory_with, network_of
from glm_lightning.training.method import unloaded
from glm_lightning.types import UserError


@dataclass(frozen=True, slots=True)
class Choice:
    """A method with or without gradient checkpointing.

    Args:
        checkpointing: whether activations are recomputed.
        expected: what the run takes as it is configured.
        fit: how many rows of the longest length the device holds at once.
        seconds: of an epoch; None where the device's rate is not known.
    """

    checkpointing: bool
    expected: Expected
    fit: Fit
    seconds: float | None

    @property
    def works(self) -> bool:
        """Whether at least one row fits."""
        return self.fit.rows > 0


@dataclass(frozen=True, slots=True)
class Row:
    """A method on a device: its choices, or why it is refused."""

    method: str
    choices: tuple[Choice, ...] = ()
    refused: str | None = None

    @property
    def best(self) -> Choice | None:
        """The fastest that works as it is configured; else the first that works with smaller micro-batches."""
        as_it_is = (choice for choice in self.choices if choice.expected.fits)
        smaller = (choice for choice in self.choices if choice.works)
        return next(as_it_is, None) or next(smaller, None)


@dataclass(frozen=True, slots=True)
class Question:
    """What all methods are asked about.

    Args:
        work: what the data are.
        precision: Lightning's name.
        device: where it shall fit.
        num_devices: how many of them.
        rate: floating-point operations a second; None where it is not known.
    """

    work: Work
    precision: str
    device: Device
    num_devices: int
    rate: float | None


def row(name: str, config: DictConfig, source: Source, objective: Objective, question: Question) -> Row:
    """What the method ``name`` takes, which ``config`` has chosen."""
    if problems := list(_refusals(config, source, objective, question)):
        return Row(name, refused="; ".join(problems))
    sources = (source.changed(gradient_checkpointing=checkpointing) for checkpointing in (False, True))
    return Row(name, tuple(_choice(config, each, objective, question) for each in sources))


def _refusals(config: DictConfig, source: Source, objective: Objective, question: Question) -> Iterator[str]:
    kind: Any = get_class(config.method._target_)
    strategy = config.trainer.strategy
    if isinstance(strategy, str):
        instead = placing.refusal(kind, strategy, quantize=source.quantize)
        if instead is not None:
            yield f"cannot work with trainer.strategy={strategy}; {instead}"
    try:
        method = unloaded(config, source, objective, chosen=question.precision, num_steps=STEPS)
        method.examine(source.changed().skeleton)
    except UserError as error:
        yield from error.problems


def _choice(config: DictConfig, source: Source, objective: Objective, question: Question) -> Choice:
    work, device, chosen = question.work, question.device, question.precision
    network = network_of(config, source, precision=chosen, kernels=device.kernels)
    memory = memory_with(network, objective, work)
    shared = on_devices(memory, strategy=str(config.trainer.strategy), devices=question.num_devices)
    return Choice(
        checkpointing=source.gradient_checkpointing,
        expected=Expected(memory, device.taken(shared), device),
        fit=fit(
            network,
            length=work.longest,
            supervised=work.largest.supervised / work.largest.positions,
            # what several devices share, each has room for
            capacity=device.room - memory.beside + memory.peak - shared,
            accumulates=work.accumulates,
        ),
        seconds=_seconds(memory.flops, question),
    )


def _seconds(flops: int, question: Question) -> float | None:
    if question.rate is None:
        return None
    work = question.work
    return flops / work.largest.positions * work.positions / question.rate / question.num_devices
