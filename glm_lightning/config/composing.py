"""Hydra's view of conf/: groups, their options, and what a list of overrides composes to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import hydra
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from glm_lightning.config import places

CONFIG_NAME = "train"
VERSION_BASE = "1.3"
ERRORS = (HydraException, OmegaConfBaseException, ValueError)
"""What composing raises for overrides that do not fit."""


@contextlib.contextmanager
def opened() -> Iterator[ConfigLoader]:
    """Hydra initialised with conf/. A Hydra that was initialised before (a notebook's own) is put back afterwards."""
    state = GlobalHydra.instance()
    before = state.hydra
    state.clear()
    try:
        with hydra.initialize_config_dir(str(places.conf_dir()), version_base=VERSION_BASE, job_name=CONFIG_NAME):
            yield GlobalHydra.instance().config_loader()
    finally:
        GlobalHydra.instance().clear()
        if before is not None:
            GlobalHydra.instance().initialize(before)


def composed(overrides: Sequence[str], *, config_name: str = CONFIG_NAME) -> DictConfig:
    """What Hydra makes of the overrides; only inside `opened`."""
    return hydra.compose(config_name, overrides=list(overrides))


def groups(loader: ConfigLoader, parent: str = "") -> dict[str, list[str]]:
    """Every group (``model``, ``data/format``) with its options; Hydra's own groups are left out."""
    found: dict[str, list[str]] = {}
    for name in loader.list_groups(parent):
        path = f"{parent}/{name}" if parent else name
        if path == "hydra":
            continue
        options = loader.get_group_options(path, ObjectType.CONFIG)
        if options:
            found[path] = sorted(options)
        found |= groups(loader, path)
    return found
