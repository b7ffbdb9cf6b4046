"""Which run is gone on with, and with which configuration."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from glm_lightning import config as configuration
from glm_lightning.runs import RunFolder
from glm_lightning.runs.folder import runs
from glm_lightning.types import UserError

APART = ("resume", "run_dir", "name")
"""Keys that do not tell one run's settings from another's."""

SETTLED = ("quantize", "model.quantize", "model.double_quantize")
"""Keys that others have taken their values from, or that would exchange the base. So have all of ``rates``."""


def resolve(
    config: DictConfig, overrides: Sequence[str], *, of_first: Path | None = None, restarted: bool = False
) -> DictConfig:
    """The configuration to run: ``config``, or that of the run it says to resume, with ``overrides`` on top.

    Args:
        config: what was composed.
        overrides: of the command line.
        of_first: the folder that the first rank has chosen, for the other ranks.
        restarted: torchrun or SLURM has started the same command anew, which goes on with its run.

    Raises:
        UserError: there is no such run, or it is finished, or an override exchanges a part of it.
    """
    automatic = config.resume == "auto" or (restarted and config.resume is None)
    if automatic and config.run_dir is not None:
        return _in_run_dir(config)
    if automatic:
        folder = _newest_unfinished(config) if of_first is None else RunFolder(of_first)
        return config if folder is None else _resumed(folder, {}, config)
    if config.resume is None:
        return config
    folder = RunFolder(Path(config.resume).expanduser().absolute())
    if not folder.config.is_file():
        raise UserError(
            f"resume is {config.resume!r}: no run lies there (it would hold config.yaml); give a run folder"
        )
    return _resumed(folder, values(overrides), config)


def _in_run_dir(config: DictConfig) -> DictConfig:
    """The run that lies in ``run_dir``, or a new one."""
    folder = RunFolder(Path(config.run_dir).absolute())
    if not folder.config.is_file():
        return config
    if _settings(configuration.load(folder.config)) != _settings(config):
        raise UserError(f"run_dir is {config.run_dir!r}: a run of other settings lies there; give another run_dir")
    return _resumed(folder, {}, config, also_finished=True)


def values(overrides: Sequence[str]) -> dict[str, Any]:
    """What a command line gives, by key; keys that tell no run's settings are left out."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    values = {override.key_or_group: override.value() for override in parsed}
    return {key: value for key, value in values.items() if key not in APART and not key.startswith("hydra.")}


def _resumed(
    folder: RunFolder, changes: dict[str, Any], composed: DictConfig, *, also_finished: bool = False
) -> DictConfig:
    # What an older release did not write yet has the value of this one.
    own = stored_in(folder)
    stored = cast(DictConfig, OmegaConf.merge({key: composed[key] for key in composed if key not in own}, own))
    parts = [key for key in changes if OmegaConf.is_config(OmegaConf.select(stored, key))]
    problems = [
        f"{key}={changes[key]}: a resumed run keeps its {key}; single values, such as trainer.max_epochs, can change"
        for key in parts
    ]
    problems += [
        f"{key}={changes[key]}: is settled when a run begins; a resumed run keeps it"
        for key in changes
        if key in SETTLED or key.startswith("rates.")
    ]
    if folder.finished and not changes and not also_finished:
        problems.append(
            f"resume is {str(folder.path)!r}: this run is finished; "
            f"to train it longer give more epochs as well: trainer.max_epochs={2 * stored.trainer.max_epochs}"
        )
    if problems:
        raise UserError(problems)
    for key, value in changes.items():
        OmegaConf.update(stored, key, value)
    stored.resume = stored.run_dir = str(folder.path)
    return stored


def stored_in(folder: RunFolder) -> DictConfig:
    """The configuration of a run, with the places inside its folder as they are now; the folder may have been moved.

    Raises:
        UserError: there is none, or it would call what no run of ours calls.
    """
    stored = configuration.load(folder.config)
    plain = _replaced(OmegaConf.to_container(stored), str(stored.run_dir), str(folder.path))
    configuration.refuse_foreign(plain, path=folder.config)
    return cast(DictConfig, OmegaConf.create(plain))


def _newest_unfinished(config: DictConfig) -> RunFolder | None:
    wanted = _settings(config)
    for folder in runs(Path(config.outputs)):
        if folder.finished or folder.running:
            continue
        with contextlib.suppress(UserError):  # what is no run of ours
            if _settings(configuration.load(folder.config)) == wanted:
                return folder
    return None


def _settings(config: DictConfig) -> dict[str, Any]:
    """Everything that decides what a run does, with interpolations as they come out in one and the same folder."""
    plain = config.copy()
    plain.run_dir = stored_dir = "RUN"
    settings = OmegaConf.to_container(plain, resolve=True)
    assert isinstance(settings, dict)
    text = str(config.run_dir)
    return {str(k): _replaced(v, text, stored_dir) for k, v in settings.items() if k not in APART}


def _replaced(value: Any, old: str, new: str) -> Any:
    """``value`` with a leading folder ``old`` in its texts replaced: a stored configuration is already resolved."""
    if isinstance(value, dict):
        return {key: _replaced(item, old, new) for key, item in value.items()}
    if isinstance(value, list):
        return [_replaced(item, old, new) for item in value]
    if isinstance(value, str) and (value == old or value.startswith(f"{old}/")):
        return new + value[len(old) :]
    return value
