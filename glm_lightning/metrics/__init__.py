"""How good answers are, as pure functions of texts.

A metric is a module of this folder with ``score(predictions, references) -> dict[str, float]``: names and values,
higher is better. Adding one is adding its file.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from difflib import get_close_matches

from glm_lightning.types import UserError

Metric = Callable[[list[str], list[str]], dict[str, float]]


def names() -> list[str]:
    """The metrics there are, by the name of their file."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def find(name: str) -> Metric:
    """The metric called ``name``.

    Raises:
        UserError: there is none of that name.
    """
    if name not in names():
        nearest = get_close_matches(name, names(), n=1) or names()[:1]
        known = ", ".join(names())
        raise UserError(f"metrics: {name!r} is not a metric. There are: {known}. Did you mean {nearest[0]!r}?")
    metric: Metric = importlib.import_module(f"{__name__}.{name}").score
    return metric
