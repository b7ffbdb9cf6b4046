"""Judging of rows: one file per kind of fault that texts have; what rows share with others is in `similarity`."""

from __future__ import annotations

import functools
import importlib
import pkgutil

from glm_lightning.data.judging.base import Rule, Texts
from glm_lightning.data.judging.kinds import OF_ROWS, Fault, Kind, Severity
from glm_lightning.data.judging.similarity import BETWEEN_ROWS

__all__ = ["Fault", "Kind", "Rule", "Severity", "Texts", "kinds", "rules"]


@functools.cache
def rules() -> tuple[Rule, ...]:
    """The rules of this folder's files, by name."""
    for info in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{info.name}")
    return tuple(sorted((rule() for rule in Rule.__subclasses__()), key=lambda rule: rule.kind.name))


@functools.cache
def kinds() -> dict[str, Kind]:
    """Every kind of fault, by name."""
    every = (*OF_ROWS, *(rule.kind for rule in rules()), *BETWEEN_ROWS)
    return {kind.name: kind for kind in every}
