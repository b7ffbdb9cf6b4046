"""Check overrides against conf/ before Hydra sees them, so that all mistakes of a command line are told at once."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import Container, DictConfig, ListConfig

from glm_lightning.config import composing
from glm_lightning.config.nearest import by_likeness, hint
from glm_lightning.config.quoting import parsed

_NEEDS_M = "several values need -m, which runs one job for each"
_Groups = Mapping[str, list[str]]


@dataclass(frozen=True)
class _Typed:
    """One override of the command line."""

    text: str
    override: Override

    @property
    def key(self) -> str:
        return str(self.override.key_or_group)

    @property
    def shown(self) -> str:
        """How a message begins."""
        typed = self.override.value() if isinstance(self.override.value(), str) else self.text.partition("=")[2]
        return f"~{self.key}" if self.override.is_delete() else f"{self.key} is {typed}"

    @property
    def is_sweep(self) -> bool:
        return bool(self.override.is_sweep_override())

    def options(self) -> list[str]:
        """The options of a group that are asked for: one, those of a list, or those of a sweep."""
        if self.override.is_delete() and self.override.value() is None:
            return []
        if self.is_sweep:
            return [str(value) for value in self.override.sweep_string_iterator()]
        return _names(self.override.value())


def _names(value: Any) -> list[str]:
    if isinstance(value, list):
        return [name for part in value for name in _names(part)]
    return ["null" if value is None else str(value)]


def problems_of(overrides: Sequence[str], *, multirun: bool, config_name: str) -> list[str]:
    """Everything that is wrong with quoted overrides: each problem says key, value, rule and the nearest name."""
    with composing.opened() as loader:
        groups = composing.groups(loader)
        problems = [_syntax_problem(text, groups) for text in overrides if parsed(text) is None]
        typed = [_Typed(text, override) for text in overrides if (override := parsed(text)) is not None]
        typed = [item for item in typed if not item.override.is_hydra_override()]
        if not multirun:
            problems += [f"{item.shown}: {_NEEDS_M}" for item in typed if item.is_sweep]
            typed = [item for item in typed if not item.is_sweep]
        for item in typed:
            item.override.config_loader = loader  # glob(*) asks it for the options
        chosen = [item for item in typed if item.key in groups and not isinstance(item.override.value(), dict)]
        problems += [problem for item in chosen for problem in _option_problems(item, groups[item.key])]
        keys = [item for item in typed if item not in chosen]
        problems += _key_problems(keys, chosen, groups, config_name=config_name, multirun=multirun)
    return list(dict.fromkeys(problems))


def _syntax_problem(text: str, groups: _Groups) -> str:
    key, equals, value = text.partition("=")
    if equals:
        return f"{text}: {key!r} is no key: must be names joined by dots, as in optimizer.lr={value}"
    owners = [f"{group}={text}" for group, options in groups.items() if text in options]
    return f"{text}: must be key=value, as in {owners[0] if owners else f'name={text}'}"


def _option_problems(item: _Typed, options: list[str]) -> Iterator[str]:
    for value in item.options():
        if value in options:
            continue
        if "," in value and {part.strip() for part in value.split(",")} <= set(options):
            yield f"{item.key} is {value}: {_NEEDS_M}"
        else:
            yield f"{item.key} is {value!r}: must be one of {', '.join(by_likeness(value, options))} (nearest first)"


def _key_problems(
    keys: Sequence[_Typed], chosen: Sequence[_Typed], groups: _Groups, *, config_name: str, multirun: bool
) -> Iterator[str]:
    """Look every key up in what each combination of the chosen options composes to."""
    for combination in _combinations(chosen, groups):
        try:
            config = composing.composed(combination, config_name=config_name)
        except composing.ERRORS as error:
            yield ": ".join([*filter(None, [" ".join(combination)]), _missing_plugin(error) or _first_line(error)])
            continue
        where = f" (with {' '.join(combination)})" if any(item.is_sweep for item in chosen) else ""
        for item in keys:
            if problem := _key_problem(item, config, groups, multirun=multirun):
                yield problem + where


def _missing_plugin(error: Exception) -> str | None:
    """What to install, where conf/launcher/ names a launcher that Hydra does not know."""
    found = re.search(r"'hydra/launcher/(submitit|ray)", str(error))
    if found is None:
        return None
    extra = {"submitit": "slurm", "ray": "ray"}[found[1]]
    return f"its launcher is not installed here: pip install 'glm-lightning[{extra}]'"


def _first_line(error: Exception) -> str:
    return next(line for line in str(error).splitlines() if line.strip())


def _combinations(chosen: Sequence[_Typed], groups: _Groups) -> list[list[str]]:
    """Every combination of the chosen options, the unknown ones left out."""
    axes: list[list[str]] = []
    for item in chosen:
        known = [value for value in item.options() if value in groups[item.key]]
        if item.is_sweep and known:
            axes.append([f"{item.override.get_key_element()}={value}" for value in known])
        elif not item.is_sweep and known == item.options():
            axes.append([item.text])
    return [list(combination) for combination in itertools.product(*axes)]


def _key_problem(item: _Typed, config: DictConfig, groups: _Groups, *, multirun: bool) -> str | None:
    override, place = item.override, _find(config, item.key)
    if override.is_force_add():
        return None
    if override.is_add():
        return f"{item.shown}: there is one already: leave the + out" if place.found else None
    if not place.found:
        return f"{item.shown}: {_no_such_key(item.key, place, config, groups)}"
    if not multirun and _was_sweep(override.value(), place.value):
        return f"{item.shown}: {_NEEDS_M}; a list is written {item.key}=[{override.value()}]"
    return None


def _was_sweep(value: Any, before: Any) -> bool:
    """Whether quotes made one text of ``1e-4,1e-3`` where no text was before."""
    if not isinstance(value, str) or before is None or isinstance(before, str):
        return False
    unquoted = parsed(f"key={value}")
    return unquoted is not None and bool(unquoted.is_sweep_override())


@dataclass(frozen=True)
class _Place:
    """Where looking up a dotted key ended."""

    found: bool
    value: Any
    path: str  # of the node that was reached last
    beside: list[str]  # the keys of that node


def _find(config: DictConfig, key: str) -> _Place:
    node: Any = config
    path: list[str] = []
    for name in key.split("."):
        names = _keys(node)
        if name not in names:
            return _Place(False, None, ".".join(path), names)
        node = _child(node, name)
        path.append(name)
    return _Place(True, node, key, [])


def _keys(node: Any) -> list[str]:
    if isinstance(node, ListConfig) and not node._is_none():
        return [str(index) for index in range(len(node))]
    return [str(name) for name in node] if isinstance(node, DictConfig) and not node._is_none() else []


def _child(node: Any, name: str) -> Any:
    """A value as it is written; interpolations stay what they are."""
    child = node._get_node(int(name) if isinstance(node, ListConfig) else name)
    return child if isinstance(child, Container) else child._value()


def _no_such_key(key: str, place: _Place, config: DictConfig, groups: _Groups) -> str:
    if key.replace(".", "/") in groups:
        return f"this is a group, whose options are {', '.join(groups[key.replace('.', '/')])}"
    owner = place.path or "the configuration"
    beside = sorted(name for name in place.beside if not name.startswith("_"))
    has = f"has {', '.join(beside)}" if beside else "has no keys"
    return f"no such key{hint(key, [*_dotted(config), *groups])}; {owner} {has}"


def _dotted(node: Any, prefix: str = "") -> Iterator[str]:
    for name in _keys(node) if isinstance(node, DictConfig) else []:
        if not name.startswith("_"):
            yield f"{prefix}{name}"
            yield from _dotted(_child(node, name), f"{prefix}{name}.")
