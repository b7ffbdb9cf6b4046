"""From what a shell user typed to what Hydra is given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from glm_lightning.config import composing, places
from glm_lightning.config.overrides import problems_of
from glm_lightning.config.quoting import quote
from glm_lightning.config.storage import load
from glm_lightning.types import UserError

FLAGS_WITH_VALUE = frozenset(
    {"--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"}
    | {"--experimental-rerun", "--info", "-i"}
)
"""Hydra's flags that are followed by a word of their own."""

# With these, Hydra does something else than compose conf/ alone.
_OTHER_DEEDS = ("--hydra-help", "--version", "--shell-completion", "-sc", "--experimental-rerun")
_OTHER_FOLDERS = ("--config-path", "-cp", "--config-dir", "-cd", "hydra.searchpath")
_CONFIG_NAMES = ("--config-name", "-cn")


def arguments(argv: Sequence[str]) -> list[str]:
    """Return the command line (without the program's name) as Hydra needs it: every override checked and quoted.

    Hydra's flags and ``hydra.*`` are left alone. Where yaml files outside of conf/ are given, only quotes are put.

    Raises:
        UserError: unknown groups, options and keys, bad syntax, sweeps without ``-m``; all of them at once.
    """
    spots = _override_places(argv)
    multirun = _is_multirun(argv)
    quoted = list(argv)
    for spot in spots:
        quoted[spot] = quote(argv[spot], multirun=multirun)
    if any(argument.startswith(_OTHER_DEEDS + _OTHER_FOLDERS) for argument in argv):
        return quoted
    overrides = [quoted[spot] for spot in spots]
    own = [*_own_data(overrides), *_of_start(overrides)]
    _check([*overrides, *own], multirun=multirun, config_name=_config_name(argv))
    return [*quoted, *own]


def sources(argv: Sequence[str]) -> list[str]:
    """The part of a command line that says where yaml files come from; the jobs of a sweep need it, too."""
    found: list[str] = []
    for place, argument in enumerate(argv):
        flag, equals, _ = argument.partition("=")
        if flag in _OTHER_FOLDERS + _CONFIG_NAMES:
            found += [argument] if equals else argv[place : place + 2]
    return found


def compose(overrides: Sequence[str] = ()) -> DictConfig:
    """Compose conf/train.yaml with overrides as a shell user would type them.

    Raises:
        UserError: as `arguments` does.
    """
    quoted = [quote(override, multirun=False) for override in overrides]
    quoted += [*_own_data(quoted), *_of_start(quoted)]
    _check(quoted, multirun=False, config_name=composing.CONFIG_NAME)
    with composing.opened():
        try:
            return composing.composed(quoted)
        except composing.ERRORS as error:
            raise UserError(str(error)) from error


def _check(overrides: Sequence[str], *, multirun: bool, config_name: str) -> None:
    if problems := problems_of(overrides, multirun=multirun, config_name=config_name):
        raise UserError(problems)


def _own_data(overrides: Sequence[str]) -> list[str]:
    """What is added where rows are given but not how they are read: else the demo's settings would go with them."""
    says = {override.partition("=")[0].lstrip("+~") for override in overrides}
    alone = "data.train" in says and not says & {"data", "resume"} and not any(map(_chooses_data, overrides))
    return ["data=auto"] if alone and (places.conf_dir() / "data/auto.yaml").is_file() else []


def _chooses_data(override: str) -> bool:
    """Whether it is an experiment that says itself how rows are read."""
    key, _, name = override.partition("=")
    file = places.conf_dir() / f"experiment/{name}.yaml"
    if key.lstrip("+") != "experiment" or not file.is_file():
        return False
    chosen: Any = OmegaConf.select(OmegaConf.load(file), "defaults", default=[])
    return any("override /data" in entry for entry in chosen)


def _of_start(overrides: Sequence[str]) -> list[str]:
    """Model and method of the run that ``init_from`` names, so that what their yamls bring comes with them."""
    says = {override.partition("=")[0].lstrip("+~"): override.partition("=")[2] for override in overrides}
    place = says.get("init_from", "null").strip("'\"")
    files = (Path(place).expanduser() / name / "config.yaml" for name in ("", ".."))
    file = next((file for file in files if file.is_file()), None)
    if place in ("null", "") or file is None:
        return []
    stored = load(file)
    path = str(OmegaConf.select(stored, "model.path"))
    model = ["model=demo"] if path == "demo" else ["model=local", quote(f"model.path={path}", multirun=False)]
    # Other ranks that Lightning starts are told what was added here for the first.
    own = [key for key in ("model", "model.path") if key in says and f"{key}={says[key]}" not in model]
    if own:
        raise UserError(f"{own[0]} is {says[own[0]]}: init_from brings its own model; leave {own[0]} out")
    target = OmegaConf.select(stored, "method._target_")
    methods = {file.stem: OmegaConf.select(OmegaConf.load(file), "method._target_") for file in _methods()}
    method = [f"method={name}" for name, known in methods.items() if known == target]
    return [each for each in (*model, *method) if each.partition("=")[0] not in says]


def _methods() -> list[Path]:
    return sorted(places.conf_dir().glob("method/*.yaml"))


def _override_places(argv: Sequence[str]) -> list[int]:
    return [
        place
        for place, argument in enumerate(argv)
        if not argument.startswith("-") and not (place and argv[place - 1] in FLAGS_WITH_VALUE)
    ]


def _is_multirun(argv: Sequence[str]) -> bool:
    """``-m``, or a file of conf/sweep/ or conf/launcher/, each of which sets hydra.mode."""
    return any(
        argument in ("-m", "--multirun", "hydra.mode=MULTIRUN")
        or (argument.startswith(("sweep=", "launcher=")) and argument.partition("=")[2] not in ("", "null"))
        for argument in argv
    )


def _config_name(argv: Sequence[str]) -> str:
    for place, argument in enumerate(argv):
        flag, equals, value = argument.partition("=")
        if flag in _CONFIG_NAMES:
            return value if equals else "".join(argv[place + 1 : place + 2])
    return composing.CONFIG_NAME
