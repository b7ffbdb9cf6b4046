"""Find what a ``_target_`` names."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType
from typing import Any

from glm_lightning.config.nearest import hint


class TargetError(Exception):
    """The reason, as the rest of a message."""


def found(path: Any) -> Any:
    """The class or function at a dotted path.

    Raises:
        TargetError: there is none.
    """
    if not isinstance(path, str) or "." not in path:
        raise TargetError("must be module.Name")
    module, names = _longest_module(path)
    target: Any = module
    for name in names:
        try:
            target = getattr(target, name)
        except AttributeError:
            existing = [other for other in _names(target) if not other.startswith("_")]
            where = path.removesuffix("." + ".".join(names))
            raise TargetError(f"{where} has no {name}{hint(name, existing)}") from None
    if not callable(target):
        raise TargetError("must be a class or a function")
    return target


def _longest_module(path: str) -> tuple[ModuleType, list[str]]:
    """Import as much of the path as is modules; give the rest."""
    parts = path.split(".")
    module: ModuleType | None = None
    for count in range(1, len(parts) + 1):
        name = ".".join(parts[:count])
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise TargetError(f"importing {name} fails: {error}") from error
            if module is None:
                raise TargetError(f"there is no module {name}") from error
            return module, parts[count - 1 :]
        except ImportError as error:
            raise TargetError(f"importing {name} fails: {error}") from error
    raise TargetError("is a module: must be a class or a function in it")


def _names(target: Any) -> list[str]:
    """What lies in a module or class, submodules that are not imported yet included."""
    inside = [module.name for module in pkgutil.iter_modules(getattr(target, "__path__", []))]
    return [*dir(target), *inside]
