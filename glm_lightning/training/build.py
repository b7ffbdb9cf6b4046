"""Build everything a run needs, before the network is loaded."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, cast

import lightning.pytorch as pl
import torch
from hydra.utils import get_class, instantiate
from lightning.pytorch.callbacks import Callback, LambdaCallback
from omegaconf import DictConfig, OmegaConf

from glm_lightning import evaluation, metrics, templates, tokenizers
from glm_lightning.callbacks import JsonLines
from glm_lightning.data.module import DataModule
from glm_lightning.data.plan import Plan
from glm_lightning.methods.base import Ingredients, Method
from glm_lightning.models import Source
from glm_lightning.runs import RunFolder, SafeCheckpoints
from glm_lightning.templates import Template
from glm_lightning.tokenizers import Tokenizer
from glm_lightning.training import console, precision
from glm_lightning.training.examination import Examination
from glm_lightning.training.parts import Parts
from glm_lightning.types import UserError


def build(config: DictConfig, folder: RunFolder) -> Parts:
    """Instantiate the parts of ``config`` and encode the data.

    Raises:
        UserError: what is wrong with any of them, all at once; then what is wrong with the data.
    """
    problems = _Problems()
    source: Source = instantiate(config.model)
    data = problems.none_in(lambda: instantiate(config.data))
    problems.none_in(source.check)
    objective = problems.none_in(lambda: instantiate(config.objective))
    measures = [problems.none_in(functools.partial(metrics.find, name)) for name in config.evaluation.metrics]
    problems.raise_if_any()
    tokenizer = _tokenizer(source)
    template = templates.find(source.template, tokenizer, source.config.model_type)
    data.load(tokenizer, template)

    chosen = precision.choose(
        str(config.trainer.precision), device=_device(config), num_parameters=source.num_parameters
    )
    examination = _examination(config, folder, tokenizer, template, data, measures)
    trainer = _trainer(config, folder, chosen.name, data, examination)
    plan = data.schedule(
        world_size=trainer.num_devices * trainer.num_nodes,
        accumulate=config.trainer.accumulate_grad_batches,
        epochs=_epochs(trainer),
    )
    trainer.accumulate_grad_batches = plan.accumulate
    _set_validation(trainer, config.trainer.val_check_interval, plan)
    num_steps = _num_steps(trainer, plan)
    method = _method(config, source, objective, chosen.name, num_steps)
    method.check(source.skeleton)
    return Parts(source, tokenizer, template, data, chosen, trainer, examination, plan, num_steps, method)


class _Problems:
    """Collects what users have to mend, so that they see all of it at once."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def none_in(self, build: Callable[[], Any]) -> Any:
        """What ``build`` gives, or None if it finds problems."""
        try:
            return build()
        except UserError as error:
            self.found += error.problems
        except Exception as error:
            # Hydra wraps what a constructor raises.
            if not isinstance(error.__cause__, UserError):
                raise
            self.found += error.__cause__.problems
        return None

    def raise_if_any(self) -> None:
        if self.found:
            raise UserError(self.found)


def _tokenizer(source: Source) -> Tokenizer:
    tokenizer = tokenizers.load(source.location)
    rows = source.config.get_text_config().vocab_size
    if tokenizer.vocab_size > rows:
        raise UserError(
            f"model.path is {source.path!r}: its tokenizer has {tokenizer.vocab_size} ids, its embedding {rows} rows; "
            "they do not belong together"
        )
    return tokenizer


def _device(config: DictConfig) -> str:
    accelerator = config.trainer.accelerator
    if accelerator in ("gpu", "cuda") or (accelerator == "auto" and torch.cuda.is_available()):
        return "cuda"
    if accelerator == "mps" or (accelerator == "auto" and torch.backends.mps.is_available()):
        return "mps"
    return "cpu"


def _examination(
    config: DictConfig,
    folder: RunFolder,
    tokenizer: Tokenizer,
    template: Template,
    data: DataModule,
    measures: Sequence[metrics.Metric],
) -> Examination:
    test, knobs = data.splits.test, config.evaluation
    best = None if data.splits.val is None else folder.best
    if test is None:
        return Examination(before=folder.before, best=best, examine=None, samples=0)
    examine = functools.partial(
        evaluation.score,
        dataset=test,
        tokenizer=tokenizer,
        template=template,
        metrics=measures,
        max_new_tokens=knobs.max_new_tokens,
        batch_size=knobs.batch_size,
        limit=knobs.rows,
    )
    return Examination(before=folder.before, best=best, examine=examine, samples=knobs.samples)


def _trainer(
    config: DictConfig, folder: RunFolder, chosen: str, data: DataModule, examination: Examination
) -> pl.Trainer:
    # Examination first: clocks and bars of the others start after what it does at the start.
    callbacks = [LambdaCallback(on_fit_start=console.trainable), examination, *_watchers(config, data)]
    loggers = [instantiate(node) for node in config.logger.values() if node is not None]
    knobs = OmegaConf.merge(
        config.trainer,
        {"precision": chosen, "accumulate_grad_batches": 1, "val_check_interval": 1.0},
    )
    trainer = instantiate(
        knobs,
        callbacks=callbacks,
        logger=[*loggers, JsonLines(folder.metrics)],
        plugins=[SafeCheckpoints()],
        default_root_dir=str(folder.path),
        # The plan already knows every rank's rows; Lightning would shuffle them once more.
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        limit_val_batches=None if data.splits.val is not None else 0,
        enable_model_summary=False,
        _convert_="all",
    )
    return cast(pl.Trainer, trainer)


def _watchers(config: DictConfig, data: DataModule) -> list[Callback]:
    watchers: list[Callback] = []
    for name, node in config.callbacks.items():
        if node is None or (data.splits.val is None and name == "early_stopping"):
            continue
        watchers.append(instantiate(node))
    return watchers


def _epochs(trainer: pl.Trainer) -> int:
    return trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else 1


def _set_validation(trainer: pl.Trainer, interval: float | int, plan: Plan) -> None:
    """Lightning counts micro-batches; a validation between two of one step would lose gradients at a checkpoint."""
    if isinstance(interval, int):
        trainer.check_val_every_n_epoch = None
        steps = interval
    else:
        steps = max(1, round(interval * plan.num_steps))
    trainer.val_check_interval = steps * plan.accumulate


def _num_steps(trainer: pl.Trainer, plan: Plan) -> int:
    steps = plan.num_steps * _epochs(trainer)
    return min(steps, trainer.max_steps) if trainer.max_steps > 0 else steps


def _method(config: DictConfig, source: Source, objective: Any, chosen: str, num_steps: int) -> Method:
    stored = cast(torch.dtype, source.config.dtype or torch.float32)
    target: Any = get_class(config.method._target_)
    dtype = precision.weights_dtype(chosen, trains_base=target.trains_base, stored=stored)
    optimizer = instantiate(config.optimizer, _convert_="all")
    # Scaled float16 gradients must be unscaled before they are clipped, which a fused kernel does by itself, too late.
    fused = {"fused": False} if chosen == "16-mixed" else {}
    ingredients = Ingredients(
        load=functools.partial(source.load, dtype=dtype),
        objective=objective,
        optimizer=functools.partial(optimizer, **fused),
        scheduler=functools.partial(instantiate(config.scheduler), num_steps=num_steps),
        seed=config.seed,
        base=source.fingerprint,
        base_dtype=stored,
        log_every_n_steps=config.trainer.log_every_n_steps,
    )
    return cast(Method, instantiate(config.method, ingredients, _convert_="all"))
