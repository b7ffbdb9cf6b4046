"""The method of a run, with the network that it loads or with one that has no weights."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from glm_lightning.config import made
from glm_lightning.estimate.skeleton import skeleton
from glm_lightning.methods.base import Method
from glm_lightning.methods.ingredients import Ingredients
from glm_lightning.methods.splitting import splits
from glm_lightning.models import Source, precision
from glm_lightning.models.source import WeightsDtype
from glm_lightning.objectives.base import Objective
from glm_lightning.optim import NamedParameters
from glm_lightning.tokenizers import Tokenizer
from glm_lightning.training import placing, starting


def ingredients_of(config: DictConfig, source: Source, objective: Objective, *, num_steps: int) -> Ingredients:
    """What every method is given, as far as the configuration alone says it."""
    return Ingredients(
        load=source.load,
        objective=objective,
        optimizer=made(config.optimizer, "optimizer"),
        scheduler=functools.partial(made(config.scheduler, "scheduler"), num_steps=num_steps),
        seed=config.seed,
        base="",
        log_every_n_steps=config.trainer.log_every_n_steps,
        on_non_finite=config.on_non_finite,
        quantize=source.quantize,
    )


def method_of(
    config: DictConfig, source: Source, objective: Objective, tokenizer: Tokenizer, chosen: str, num_steps: int
) -> Method:
    """The method that is trained in the precision ``chosen``."""
    load = functools.partial(placing.load_on_first, source) if placing.is_sharded(config) else source.load
    ingredients = ingredients_of(config, source, objective, num_steps=num_steps)
    ingredients = replace(
        ingredients,
        load=functools.partial(load, dtype=_dtype(config, source, chosen)),
        optimizer=_optimizer(ingredients, chosen),
        base=source.fingerprint,
        base_dtype=source.stored_dtype,
        num_steps=num_steps,
        tokenizer=tokenizer,
        compile=source.compile,
        liger=source.liger,
        start=functools.partial(starting.values, config),
    )
    return cast(Method, made(config.method, "method", ingredients))


def unloaded(config: DictConfig, source: Source, objective: Objective, *, chosen: str, num_steps: int) -> Method:
    """The same on the meta device: its network has no weights."""
    ingredients = ingredients_of(config, source, objective, num_steps=num_steps)
    ingredients = replace(
        ingredients,
        load=functools.partial(skeleton, source, dtype=_dtype(config, source, chosen)),
        optimizer=_optimizer(ingredients, chosen),
        base_dtype=source.stored_dtype,
        num_steps=num_steps,
    )
    # A start that is computed from weights needs some; what is held is the same with any other.
    start = str(config.method.get("init"))
    others = {"text": {"init": "vocabulary", "init_text": None}}
    begun = {"init": "default"} if splits(start) else others.get(start, {})
    return cast(Method, made(OmegaConf.merge(config.method, begun), "method", ingredients))


def _dtype(config: DictConfig, source: Source, chosen: str) -> WeightsDtype:
    kind: type[Method] = get_class(config.method._target_)
    return precision.weights_dtype(chosen, trains_base=kind.trains_base, stored=source.stored_dtype)


def _optimizer(ingredients: Ingredients, chosen: str) -> Callable[[NamedParameters], torch.optim.Optimizer]:
    """The optimizer for a precision.

    Scaled float16 gradients must be unscaled before they are clipped, which a fused kernel does by itself, too late.
    """
    make: Any = ingredients.optimizer
    has_fused = "fused" in inspect.signature(make).parameters
    return functools.partial(make, fused=False) if chosen == "16-mixed" and has_fused else make
