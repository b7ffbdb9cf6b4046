"""Mistakes of a run's configuration that signatures cannot see, told before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, get_args

from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from glm_lightning.methods.tracing import OnNonFinite


def in_numbers(config: DictConfig) -> Iterator[str]:
    """Numbers outside their range, and monitors of what is not measured."""
    ranges: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
        ("seed", lambda n: 0 <= n < 2**32, "from 0 to 4294967295"),
        ("trainer.max_epochs", lambda n: n is not None and n >= 1, "1 or more"),
        ("trainer.max_steps", lambda n: n == -1 or n >= 1, "1 or more, or -1 for no limit"),
        ("trainer.gradient_clip_val", lambda n: n is None or n > 0, "above 0, or null for no clipping"),
        ("trainer.log_every_n_steps", lambda n: n is not None and n >= 1, "1 or more"),
        ("trainer.val_check_interval", _is_interval, "a share of an epoch in (0, 1] or a whole number of steps"),
    )
    for key, fine, rule in ranges:
        value = OmegaConf.select(config, key)
        if not fine(value):
            yield f"{key} is {value}: must be {rule}"
    if config.on_non_finite not in get_args(OnNonFinite):
        yield f"on_non_finite is {config.on_non_finite!r}: must be one of {', '.join(get_args(OnNonFinite))}"
    objective: Any = get_class(config.objective._target_)
    measured = [f"val/{name}" for name in ("loss", *objective.metrics)]
    for name, node in config.callbacks.items():
        monitor = None if node is None else node.get("monitor")
        if monitor is not None and monitor not in measured:
            yield f"callbacks.{name}.monitor is {monitor!r}: must be one of {', '.join(measured)}"


def _is_interval(value: Any) -> bool:
    if isinstance(value, int):
        return value >= 1
    return isinstance(value, float) and 0 < value <= 1
