"""Build everything a run needs, before the network is loaded."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, cast

import lightning.pytorch as pl
import torch
from hydra.utils import get_class, instantiate
from lightning.pytorch.callbacks import Callback, Checkpoint, LambdaCallback
from omegaconf import DictConfig, OmegaConf
from transformers.utils import is_flash_attn_2_available

from glm_lightning import evaluation
from glm_lightning.callbacks import JsonLines
from glm_lightning.config import made
from glm_lightning.data.module import DataModule
from glm_lightning.data.plan import Plan
from glm_lightning.inference.loading import words
from glm_lightning.methods.base import Method
from glm_lightning.models import Source, liger, precision
from glm_lightning.objectives.base import Objective, Setup
from glm_lightning.runs import RunFolder, SafeCheckpoints
from glm_lightning.templates import Template
from glm_lightning.tokenizers import Tokenizer
from glm_lightning.training import console, heap, launching, placing, starting, teaching
from glm_lightning.training.examination import Examination
from glm_lightning.training.method import ingredients_of, method_of
from glm_lightning.training.parts import Parts
from glm_lightning.training.problems import in_numbers
from glm_lightning.types import Problems


def build(config: DictConfig, folder: RunFolder) -> Parts:
    """Instantiate the parts of ``config`` and encode the data.

    Raises:
        UserError: what is wrong with any of them, all at once; then what is wrong with the data.
    """
    source, objective, settings, data = _checked(config)
    tokenizer, template = words(source, source.location)
    notices = list(teaching.equip(objective, tokenizer, template, student=source.fingerprint, rows=data.train_paths))
    target: Any = get_class(config.method._target_)
    data.load(tokenizer, template, learned=objective.learns, packs=target.packs and objective.packs)

    chosen = precision.choose(
        str(config.trainer.precision), device=_device(config), num_parameters=source.num_parameters
    )
    precision.allow_tf32(chosen.name, device=_device(config))
    examination = _examination(folder, tokenizer, template, data, settings)
    examination.earlier, unread = starting.earlier(config, tokenizer, template, learned=data.splits.train)
    notices += unread
    trainer = _trainer(config, folder, chosen.name, data, examination)
    launching.check(trainer)
    plan = data.schedule(
        world_size=trainer.num_devices * trainer.num_nodes,
        accumulate=config.trainer.accumulate_grad_batches,
        epochs=config.trainer.max_epochs,
    )
    trainer.accumulate_grad_batches = plan.accumulate
    _set_validation(trainer, config.trainer.val_check_interval, plan)
    steps = plan.num_steps * config.trainer.max_epochs
    num_steps = min(steps, trainer.max_steps) if trainer.max_steps > 0 else steps
    method = method_of(config, source, objective, tokenizer, chosen.name, num_steps)
    method.notices += [*chosen.notices, *notices]
    return Parts(source, tokenizer, template, data, chosen, trainer, examination, plan, num_steps, method)


def _checked(config: DictConfig) -> tuple[Source, Objective, evaluation.Settings, DataModule]:
    """The parts that need neither data nor devices; all that is wrong with them, and with the others, is told here."""
    problems = Problems()
    problems.found += in_numbers(config)
    problems.found += launching.problems(config)
    problems.found += _clashes(config)
    source: Source = instantiate(config.model)
    problems.none_in(source.check)
    problems.found += _kernel_problems(config, source)
    objective = problems.none_in(lambda: made(config.objective, "objective"))
    if objective is not None:
        target: Any = get_class(config.method._target_)
        setup = Setup(
            adapter=target.artefact == "adapter",
            packing=config.data.get("packing") is True,
            compiled=source.compile,
            sharded=placing.is_sharded(config),
        )
        problems.found += objective.clashes(setup)
        problems.none_in(lambda: teaching.teacher_of(objective))
    settings = problems.none_in(lambda: made(config.evaluation, "evaluation"))
    data = problems.none_in(lambda: made(config.data, "data"))
    if data is not None:
        problems.none_in(data.check)
    problems.none_in(lambda: _watchers(config))
    problems.none_in(lambda: precision.check(str(config.trainer.precision), device=_device(config)))
    # Constructing a method costs nothing, so one is made for its mistakes before there are data to make the real one.
    rehearsal = problems.none_in(lambda: _rehearsal(config, source, cast(Objective, objective)))
    if rehearsal is not None:
        problems.found += rehearsal.wrong_with(str(config.trainer.strategy))
    if rehearsal is not None and not problems.found:
        problems.none_in(lambda: rehearsal.examine(source.skeleton))
    problems.raise_if_any()
    assert objective is not None
    assert settings is not None
    assert data is not None
    return source, objective, settings, data


def _clashes(config: DictConfig) -> Iterator[str]:
    """What the method cannot do together with other choices."""
    yield from placing.problems(config)
    method: Any = get_class(config.method._target_)
    name = config.method._target_.rpartition(".")[2]
    if config.data.get("packing") is True and not method.packs:
        yield f"data.packing is true: {name} cannot share a row among samples; set data.packing=false"


def _kernel_problems(config: DictConfig, source: Source) -> Iterator[str]:
    """What the device or the installation lacks for the kernels that are asked for."""
    device = _device(config)
    if source.liger:
        yield from liger.problems(device)
    if source.attention == "flash_attention_2" and not (device == "cuda" and is_flash_attn_2_available()):
        yield (
            "model.attention is flash_attention_2: it needs a GPU and the package flash-attn; give sdpa, which has "
            "torch's own flash kernels, for packed rows, too"
        )


def _rehearsal(config: DictConfig, source: Source, objective: Objective) -> Method:
    """A method that is never trained, with optimizer and schedule tried on a parameter of four zeros."""
    problems = Problems()
    ingredients = ingredients_of(config, source, objective, num_steps=1)
    method = problems.none_in(lambda: made(config.method, "method", ingredients))
    parameter = ("weight", torch.nn.Parameter(torch.zeros(2, 2)))
    optimizer = problems.none_in(lambda: ingredients.optimizer([parameter]))
    problems.none_in(lambda: ingredients.scheduler(optimizer or torch.optim.SGD([parameter[1]], lr=1.0)))
    problems.raise_if_any()
    return cast(Method, method)


def _device(config: DictConfig) -> str:
    accelerator = config.trainer.accelerator
    if accelerator in ("gpu", "cuda") or (accelerator == "auto" and torch.cuda.is_available()):
        return "cuda"
    if accelerator == "mps" or (accelerator == "auto" and torch.backends.mps.is_available()):
        return "mps"
    return "cpu"


def _examination(
    folder: RunFolder, tokenizer: Tokenizer, template: Template, data: DataModule, settings: evaluation.Settings
) -> Examination:
    test = data.splits.test
    if test is None:
        return Examination(before=folder.before, examine=None, samples=0)
    examine = functools.partial(
        evaluation.score,
        dataset=test,
        tokenizer=tokenizer,
        template=template,
        metrics=settings.measures,
        max_new_tokens=settings.max_new_tokens,
        batch_size=settings.batch_size,
        limit=settings.rows,
    )
    return Examination(before=folder.before, examine=examine, samples=settings.samples)


def _trainer(
    config: DictConfig, folder: RunFolder, chosen: str, data: DataModule, examination: Examination
) -> pl.Trainer:
    watchers = _watchers(config)
    if data.splits.val is None:
        watchers.pop("early_stopping", None)
    # Examination first: clocks and bars of the others start after what it does at the start.
    callbacks = [LambdaCallback(on_fit_start=console.trainable), examination, *watchers.values()]
    if _device(config) == "cpu":
        callbacks.append(heap.Trimmed())
    loggers = [made(node, f"logger.{name}") for name, node in config.logger.items() if node is not None]
    knobs = OmegaConf.merge(
        config.trainer,
        {"precision": chosen, "accumulate_grad_batches": 1, "val_check_interval": 1.0},
        {"strategy": placing.strategy(config), "num_nodes": launching.num_nodes(config)},
    )
    trainer = made(
        knobs,
        "trainer",
        callbacks=callbacks,
        logger=[*loggers, JsonLines(folder.metrics)],
        plugins=[SafeCheckpoints()],
        default_root_dir=str(folder.path),
        # The plan already knows every rank's rows; Lightning would shuffle them once more.
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        # Without ours there shall be no checkpoints; Lightning would bring its own.
        enable_checkpointing=any(isinstance(watcher, Checkpoint) for watcher in watchers.values()),
        limit_val_batches=None if data.splits.val is not None else 0,
        enable_model_summary=False,
    )
    return cast(pl.Trainer, trainer)


def _watchers(config: DictConfig) -> dict[str, Callback]:
    nodes = {str(name): node for name, node in config.callbacks.items() if node is not None}
    return {name: made(node, f"callbacks.{name}") for name, node in nodes.items()}


def _set_validation(trainer: pl.Trainer, interval: float | int, plan: Plan) -> None:
    """Lightning counts micro-batches; a validation between two of one step would lose gradients at a checkpoint."""
    if isinstance(interval, int):
        trainer.check_val_every_n_epoch = None
        steps = interval
    else:
        steps = max(1, round(interval * plan.num_steps))
    trainer.val_check_interval = steps * plan.accumulate
