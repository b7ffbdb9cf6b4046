"""A type annotation as the words of a rule, and a value as a user would write it."""

from __future__ import annotations

import collections.abc
import json
import os
import types
from pathlib import Path
from typing import Annotated, Any, Literal, NewType, Union, get_args, get_origin

_LONGEST = 80
_PLAIN: dict[Any, str] = {
    None: "null",
    types.NoneType: "null",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
    os.PathLike: "a path",
    Any: "anything",
}
_LISTS = (list, set, frozenset, tuple, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)
_MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)


def shown(value: Any) -> str:
    """A value as yaml would hold it; texts in quotes, long ones cut."""
    text = repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def rule(annotation: Any) -> str:
    """What a value of this type must be: ``a whole number or null``."""
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return rule(arguments[0])
    if origin is Literal:
        return f"one of {', '.join(_bare(value) for value in arguments)}" if arguments[1:] else _bare(arguments[0])
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(rule(argument) for argument in arguments))
    return _container(origin or annotation, arguments)


def _container(origin: Any, arguments: tuple[Any, ...]) -> str:
    if origin is tuple and arguments and Ellipsis not in arguments:
        return f"a list [{', '.join(rule(argument) for argument in arguments)}]"
    if origin in _PLAIN:
        return _PLAIN[origin]
    if origin in _LISTS:
        return f"a list [{rule(arguments[0])}, ...]" if arguments else "a list"
    if origin in _MAPPINGS:
        return f"keys with values {{key: {rule(arguments[1])}, ...}}" if arguments else "keys with values"
    if isinstance(origin, NewType):
        return rule(origin.__supertype__)
    if origin is collections.abc.Callable:
        return "a function, that is, keys with a _target_"
    return f"a {getattr(origin, '__name__', origin)}, that is, keys with a _target_"


def literals(annotation: Any) -> list[str]:
    """All texts that an annotation lists, for the nearest one to be found."""
    if get_origin(annotation) is Literal:
        return [value for value in get_args(annotation) if isinstance(value, str)]
    return [value for argument in get_args(annotation) for value in literals(argument)]


def _bare(value: Any) -> str:
    return value if isinstance(value, str) else shown(value)
