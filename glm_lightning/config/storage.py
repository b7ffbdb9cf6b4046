"""A run's configuration on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from glm_lightning.files import write_text
from glm_lightning.types import UserError


def save(config: DictConfig, path: Path) -> None:
    """Write the configuration with every interpolation resolved, atomically, with Chinese left readable."""
    write_text(path, OmegaConf.to_yaml(config, resolve=True))


TRUSTED = ("glm_lightning.", "lightning.", "torch.")
"""Where what a stored configuration calls may come from."""


def refuse_foreign(stored: Any, *, path: Path) -> None:
    """Raise `UserError` for stored values that would call what no run of ours calls.

    A configuration is data; somebody else's may not run code.
    """
    values = OmegaConf.to_container(stored) if isinstance(stored, DictConfig) else stored
    foreign = [target for target in _targets(values) if not target.startswith(TRUSTED)]
    if foreign:
        raise UserError([f"{path}: calls {target}, which is none of {', '.join(TRUSTED)}..." for target in foreign])


def load(path: Path) -> DictConfig:
    """Read a configuration that `save` wrote.

    Raises:
        UserError: there is no such file, or it holds no mapping.
    """
    try:
        config = OmegaConf.load(path)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; give the folder of a run") from None
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: not a configuration: {error}") from error
    if not isinstance(config, DictConfig):
        raise UserError(f"{path}: must hold keys and values, holds a list")
    return config


def _targets(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [str(value["_target_"])] if "_target_" in value else []
        return own + [target for item in value.values() for target in _targets(item)]
    return [target for item in value for target in _targets(item)] if isinstance(value, list) else []
