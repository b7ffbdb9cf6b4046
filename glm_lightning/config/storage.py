"""A run's configuration on disk."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from glm_lightning.files import write_text
from glm_lightning.types import UserError


def save(config: DictConfig, path: Path) -> None:
    """Write the configuration with every interpolation resolved, atomically, with Chinese left readable."""
    write_text(path, OmegaConf.to_yaml(config, resolve=True))


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
