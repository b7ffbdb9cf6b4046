"""Bind a composed configuration to the signatures it will call, before anything is built."""

from __future__ import annotations

import contextlib
import inspect
import json
import typing
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from glm_lightning.config.nearest import hint
from glm_lightning.config.targets import TargetError, found
from glm_lightning.config.words import literals, rule, shown
from glm_lightning.types import UserError

TARGET, PARTIAL = "_target_", "_partial_"
_HYDRAS = frozenset({TARGET, PARTIAL, "_args_", "_convert_", "_recursive_"})


class _Broken:
    """Stands for a value that cannot be read and has been reported already."""


_BROKEN = _Broken()


def check(config: DictConfig, *, provided: Mapping[str, Collection[str]]) -> None:
    """Bind every node with a ``_target_``, however deep, to the signature it will call.

    Args:
        config: what was composed.
        provided: by path of a node (``method``, ``callbacks.early_stopping``), the arguments that are given at run
            time; they may be missing, and a value for them is not checked.

    Raises:
        UserError: every unknown key, missing argument, wrong type, missing value (``???``), interpolation that leads
            nowhere and target that cannot be imported; each with key, value, rule and the nearest existing name.
    """
    problems: list[str] = []
    tree = _read(config, "", problems)
    problems += _node_problems(tree, "", provided)
    if problems:
        raise UserError(problems)


def _read(node: Any, path: str, problems: list[str]) -> Any:
    """Plain dicts, lists and values; what cannot be read is reported and replaced."""
    if isinstance(node, DictConfig):
        return {str(key): _read_child(node, key, _joined(path, key), problems) for key in node}
    if isinstance(node, ListConfig):
        return [_read_child(node, index, _joined(path, index), problems) for index in range(len(node))]
    return node


def _read_child(parent: DictConfig | ListConfig, key: Any, path: str, problems: list[str]) -> Any:
    if OmegaConf.is_missing(parent, key):
        problems.append(f"{path} is missing: must be given, as in {path}=...")
        return _BROKEN
    try:
        return _read(parent[key], path, problems)
    except OmegaConfBaseException as error:
        written = OmegaConf.to_container(parent, resolve=False)
        problems.append(f"{path} is {written[key]}: {str(error).splitlines()[0]}")  # type: ignore[index]
        return _BROKEN


def _joined(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def _children(tree: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(tree, dict):
        yield from tree.items()
    elif isinstance(tree, list):
        yield from enumerate(tree)


def _node_problems(tree: Any, path: str, provided: Mapping[str, Collection[str]]) -> Iterator[str]:
    if isinstance(tree, dict) and TARGET in tree:
        yield from _binding_problems(tree, path, frozenset(provided.get(path, ())))
    for key, child in _children(tree):
        yield from _node_problems(child, _joined(path, key), provided)


def _binding_problems(node: dict[str, Any], path: str, provided: Collection[str]) -> Iterator[str]:
    if isinstance(node[TARGET], _Broken):
        return
    try:
        target = found(node[TARGET])
    except TargetError as error:
        yield f"{_joined(path, TARGET)} is {shown(node[TARGET])}: {error}"
        return
    signature = _Signature.of(target)
    given = {key: value for key, value in node.items() if key not in _HYDRAS}
    names = sorted(set(signature.parameters) - set(provided))
    for key, value in given.items():
        start = f"{_joined(path, key)} is {_brief(value)}"
        if key in provided:
            continue
        if key not in signature.parameters and not signature.open:
            takes = f"takes {', '.join(names)}" if names else "takes no keys"
            yield f"{start}: no such key{hint(key, names)}; {signature.name} {takes}"
        elif key in signature.parameters and not signature.accepts(key, value):
            yield f"{start}{signature.must_be(key, value)}"
    if not node.get(PARTIAL) and "_args_" not in node:
        for key in sorted(signature.required - given.keys() - set(provided)):
            must = signature.must_be(key)
            yield f"{_joined(path, key)} is missing{must or ': must be given'}; give {_joined(path, key)}=..."


def _brief(value: Any) -> str:
    return shown(_plain(value))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_plain(child) for child in value]
    return "???" if isinstance(value, _Broken) else value


@dataclass(frozen=True)
class _Signature:
    """What a target takes by keyword."""

    name: str
    parameters: Mapping[str, Any]  # annotation by name; Any where there is none or it cannot be read
    required: frozenset[str]
    open: bool  # takes any other key, too

    @classmethod
    def of(cls, target: Any) -> _Signature:
        """Read a class's or a function's signature; one that cannot be read takes anything."""
        name = getattr(target, "__name__", str(target))
        try:
            parameters = inspect.signature(target).parameters
        except (TypeError, ValueError):
            return cls(name, {}, frozenset(), open=True)
        hints = _hints(target.__init__ if inspect.isclass(target) else target)
        named = {key: p for key, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        return cls(
            name,
            {key: hints.get(key, Any) for key in named},
            frozenset(key for key, p in named.items() if p.default is p.empty),
            open=any(p.kind is p.VAR_KEYWORD for p in parameters.values()),
        )

    def accepts(self, key: str, value: Any) -> bool:
        """Whether a yaml value fits the annotation; nodes inside it are bound by themselves and fit anything."""
        return _holds_node(value) or _fits(value, self.parameters[key])

    def must_be(self, key: str, value: Any = None) -> str:
        """The rule in words, with the nearest of the values that it lists."""
        annotation = self.parameters[key]
        if annotation is Any:
            return ""
        nearest = hint(value, literals(annotation)) if isinstance(value, str) else ""
        return f": must be {rule(annotation)}{nearest}"


def _hints(function: Any) -> dict[str, Any]:
    """Annotations by parameter; one that cannot be evaluated (third-party code) is left out."""
    function = inspect.unwrap(function)
    try:
        return typing.get_type_hints(function, include_extras=True)
    except Exception:  # any code of a third party may stand in an annotation
        hints: dict[str, Any] = {}
        for key, annotation in getattr(function, "__annotations__", {}).items():
            with contextlib.suppress(Exception):
                hints |= typing.get_type_hints(_Holder(key, annotation), function.__globals__, include_extras=True)
        return hints


class _Holder:
    """Something with one annotation, for `typing.get_type_hints`."""

    def __init__(self, key: str, annotation: Any) -> None:
        self.__annotations__ = {key: annotation}


def _holds_node(value: Any) -> bool:
    """Whether it is built from, or holds, a node with a target (or something that was reported already)."""
    if isinstance(value, _Broken) or (isinstance(value, dict) and TARGET in value):
        return True
    return any(_holds_node(child) for _, child in _children(value))


def _fits(value: Any, annotation: Any) -> bool:
    if annotation is Any:
        return True
    try:
        adapter = TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True, strict=True))
    except PydanticUserError:
        # pydantic has no rule for this type; a yaml file cannot hold an object of a class.
        return not inspect.isclass(annotation)
    except Exception:  # annotations of third parties that pydantic cannot digest
        return True
    try:
        # As JSON, for there a list fits a tuple and a text fits a path, as they do in yaml.
        read = adapter.validate_json(json.dumps(value))
        if isinstance(read, Iterator):
            list(read)  # pydantic judges the elements of an Iterable one by one, as they are asked for
    except ValidationError:
        return False
    return True
