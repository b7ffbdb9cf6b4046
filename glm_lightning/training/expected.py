"""What a run will take, before its weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self, cast

import numpy as np
from hydra.utils import get_class
from omegaconf import DictConfig

from glm_lightning.config import made
from glm_lightning.data.dataset import Dataset
from glm_lightning.data.module import DataModule
from glm_lightning.data.plan import Plan, evaluation_batches, padded_lengths
from glm_lightning.estimate import devices
from glm_lightning.estimate.devices import Device
from glm_lightning.estimate.fitting import on_devices
from glm_lightning.estimate.memory import Memory, Network
from glm_lightning.estimate.tracing import Answers, Kernels, Shape
from glm_lightning.inference.loading import words
from glm_lightning.methods.base import FSDP
from glm_lightning.models import Source
from glm_lightning.objectives.base import Objective
from glm_lightning.objectives.sft import SFT
from glm_lightning.training import heap, teaching
from glm_lightning.training.method import unloaded
from glm_lightning.training.parts import Parts

STEPS = 1000
"""Of the schedule, on which no memory depends."""


@dataclass(frozen=True, slots=True)
class Work:
    """What of its data decides what a run takes.

    Args:
        largest: the largest micro-batch of training.
        accumulates: whether an optimizer step has several micro-batches.
        positions: padded positions of an epoch, about.
        validation: the largest micro-batch of validation.
        answers: the largest batch of test rows that are answered.
        longest: padded positions of the longest row.
        known: whether the data are; else they are what the configuration allows.
    """

    largest: Shape
    accumulates: bool
    positions: int
    validation: Shape | None = None
    answers: Answers | None = None
    longest: int = 0
    known: bool = True

    @classmethod
    def full(cls, config: DictConfig) -> Self:
        """Of data that are not there: micro-batches as full as ``config`` allows, and a million positions.

        Every row is as long as it may be, and half of it is learned.
        """
        longest = -(-config.max_length // config.pad_to_multiple) * config.pad_to_multiple
        rows = max(1, min(config.max_tokens // longest, config.batch_size))
        shape = Shape(rows, longest, rows * longest // 2)
        accumulates = config.batch_size > rows
        return cls(shape, accumulates, 1_000_000, validation=shape, longest=longest, known=False)

    @classmethod
    def of(cls, config: DictConfig, data: DataModule, plan: Plan) -> Self:
        """Of data that are encoded, and their plan."""
        train, largest = data.splits.train, plan.largest()
        size, width = plan.size(largest), plan.width(largest)
        supervised = int(train.num_supervised[[sample for row in largest for sample in row]].sum())
        return cls(
            largest=Shape(size // width, width, supervised, packed=data.packing),
            accumulates=plan.accumulate > 1,
            positions=int(padded_lengths(plan.lengths, plan.pad_to_multiple).sum()) * plan.sequences,
            validation=_validation(data, data.splits.val),
            answers=_answers(config, data.splits.test),
            longest=int(padded_lengths(plan.lengths[plan.lengths.argmax()][None], plan.pad_to_multiple)[0]),
        )

    def within(self, most: int | None) -> Self:
        """The same in micro-batches of at most so many positions; None: as they are."""
        if most is None or self.largest.positions <= most:
            return self
        rows = max(1, most // self.largest.length)
        share = rows / self.largest.rows
        largest = replace(self.largest, rows=rows, supervised=max(1, round(self.largest.supervised * share)))
        return replace(self, largest=largest, accumulates=True)


def loaded_data(
    config: DictConfig, source: Source, objective: Objective, *, num_devices: int
) -> tuple[DataModule, Plan]:
    """The data of ``config``, encoded or found encoded, and their plan."""
    data = cast(DataModule, made(config.data, "data"))
    data.check()
    tokenizer, template = words(source, source.location)
    kind: Any = get_class(config.method._target_)
    data.load(tokenizer, template, learned=objective.learns, packs=kind.packs and objective.packs)
    accumulate = config.trainer.accumulate_grad_batches
    return data, data.schedule(world_size=num_devices, accumulate=accumulate, epochs=config.trainer.max_epochs)


def _validation(data: DataModule, part: Dataset | None) -> Shape | None:
    if part is None:
        return None
    sequences, widths = 1 + part.paired, part.widths
    batches = evaluation_batches(widths, max_tokens=data.max_tokens // sequences, pad_to_multiple=data.pad_to_multiple)

    def shape(batch: tuple[tuple[int, ...], ...]) -> Shape:
        rows = [sample for row in batch for sample in row]
        width = int(padded_lengths(widths[rows], data.pad_to_multiple).max())
        return Shape(len(rows) * sequences, width, int(part.num_supervised[rows].sum()))

    return max(map(shape, batches), key=lambda each: each.positions)


def _answers(config: DictConfig, part: Dataset | None) -> Answers | None:
    """The longest prompts together; what of a row is the prompt, its length bounds from above."""
    settings = config.evaluation
    if part is None or settings.rows == 0:
        return None
    lengths = np.sort(part.lengths[: settings.rows])
    return Answers(min(settings.batch_size, len(lengths)), int(lengths[-1]), settings.max_new_tokens)


def memory_of(
    config: DictConfig,
    source: Source,
    objective: Objective,
    work: Work,
    *,
    precision: str,
    kernels: Kernels,
) -> Memory:
    """Bytes of a run's tensors on one device."""
    return memory_with(network_of(config, source, precision=precision, kernels=kernels), objective, work)


def memory_with(network: Network, objective: Objective, work: Work) -> Memory:
    """The same for a network that is there already.

    Every objective is counted as cross-entropy on its micro-batches; a teacher's own weights come on top.
    """
    return network.memory(
        work.largest, accumulates=work.accumulates, validation=work.validation, answers=work.answers
    ).with_beside(_teacher_bytes(objective))


def network_of(config: DictConfig, source: Source, *, precision: str, kernels: Kernels) -> Network:
    """The network of a run without its weights."""
    method = unloaded(config, source, SFT(), chosen=precision, num_steps=STEPS)
    return Network(method, precision=precision, kernels=kernels, sharded=config.trainer.strategy in FSDP)


def _teacher_bytes(objective: Objective) -> int:
    teacher = teaching.teacher_of(objective)
    return 0 if teacher is None else teacher.num_bytes


@dataclass(frozen=True, slots=True)
class Expected:
    """What a run is expected to take on each of its devices.

    Args:
        memory: bytes of tensors.
        peak: bytes at most at any moment, with what a process takes beside its tensors.
        device: which has room for it, or has not.
    """

    memory: Memory
    peak: int
    device: Device

    @property
    def at_most(self) -> int:
        """``peak`` with what the C library's heap keeps beyond it, left to itself."""
        kept = heap.KEPT if self.device.kernels == "cpu" else 0.0
        return self.peak + int(kept * (self.peak - self.device.beside))

    @property
    def fits(self) -> bool:
        """Whether there is room for it."""
        return self.peak <= self.device.size


def of_run(config: DictConfig, parts: Parts, *, source: Source | None = None, most: int | None = None) -> Expected:
    """What a run takes whose parts are built, on the devices of this machine.

    ``source`` and ``most`` are another model, and other positions of a micro-batch, that it might have.
    """
    trainer = parts.trainer
    device = devices.here(trainer.strategy.root_device, processes=trainer.num_devices)
    memory = memory_of(
        config,
        source or parts.source,
        parts.method.ingredients.objective,
        Work.of(config, parts.data, parts.plan).within(most),
        precision=parts.precision.name,
        kernels=device.kernels,
    )
    num_devices = trainer.num_devices * trainer.num_nodes
    shared = on_devices(memory, strategy=str(config.trainer.strategy), devices=num_devices)
    return Expected(memory, device.taken(shared), device)
