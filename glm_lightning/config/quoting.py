"""Write what a shell user typed in Hydra's override grammar.

Hydra wants quotes of its own around Chinese, ``#``, brackets and more (``data.train="'数据.jsonl'"``). Here they are
put where the grammar does not accept the text as it stands.
"""

from __future__ import annotations

import re
from functools import cache

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString, ValueType
from hydra.errors import HydraException

_BRACKETS = {"(": ")", "[": "]", "{": "}"}
# A quoted part counts as one only where an element may begin and where it may end: "it's" is none.
_QUOTED = re.compile(r"""(['"])(?:\\.|(?!\1)[^\\])*\1(?=\s*(?:[,\]})]|$))""", re.DOTALL)


def quote(argument: str, *, multirun: bool) -> str:
    """Return an override that Hydra accepts and that means what was typed.

    What Hydra accepts is left as it is; so quoting twice changes nothing. Commas outside of brackets separate the
    values of a sweep under ``multirun`` and are text otherwise. ``[a,b]`` and ``{k:v}`` stay a list and a mapping, and
    ``${key}`` stays an interpolation.
    """
    override = parsed(argument)
    if override is not None and (multirun or not _is_comma_sweep(override)):
        return argument
    key, equals, value = argument.partition("=")
    if not equals or parsed(f"{key}=0") is None:
        return argument
    if multirun:
        sweep = f"{key}={','.join(_element(part.strip()) for part in _split(value))}"
        if parsed(sweep) is not None:
            return sweep
    return f"{key}={_element(value)}"


def unquoted(argument: str) -> str:
    """Return the override as one would type it: what `quote` makes the same of again."""
    key, _, _ = argument.partition("=")
    override = parsed(argument)
    typed = argument if override is None else f"{key}={override.value()}"
    return typed if quote(typed, multirun=False) == argument else argument


def parsed(argument: str) -> Override | None:
    """Hydra's reading of one override, or None where its grammar does not accept it."""
    try:
        return _parser().parse_override(argument)
    except (HydraException, ValueError, RecursionError):
        return None


@cache
def _parser() -> OverridesParser:
    return OverridesParser.create()


def _is_comma_sweep(override: Override) -> bool:
    return override.value_type is ValueType.SIMPLE_CHOICE_SWEEP


def _is_element(text: str) -> bool:
    override = parsed(f"key={text}")
    return override is not None and not _is_comma_sweep(override)


def _element(text: str) -> str:
    """One value: as it is, or with quotes around the parts that need them, or around all of it."""
    if text and _is_element(text):
        return text
    inner = text.strip()[1:-1]
    if text.strip()[:1] == "[" and text.strip()[-1:] == "]":
        candidate = f"[{','.join(_element(part.strip()) for part in _split(inner))}]"
    elif text.strip()[:1] == "{" and text.strip()[-1:] == "}":
        candidate = f"{{{','.join(_pair(part) for part in _split(inner))}}}"
    else:
        return _quoted(text)
    return candidate if _is_element(candidate) else _quoted(text)


def _pair(text: str) -> str:
    key, _, value = text.partition(":")
    return f"{key.strip()}:{_element(value.strip())}"


def _quoted(text: str) -> str:
    return str(QuotedString(text, Quote.single).with_quotes())


def _split(text: str) -> list[str]:
    """Cut at the commas outside of brackets and quoted parts; at all commas where the brackets do not match."""
    parts, closers, start, position = [], [], 0, 0
    at_start = True  # whether an element may begin here
    while position < len(text):
        character = text[position]
        if at_start and (part := _QUOTED.match(text, position)):
            position, at_start = part.end(), False
            continue
        if character in _BRACKETS:
            closers.append(_BRACKETS[character])
        elif closers and character == closers[-1]:
            closers.pop()
        elif character == "," and not closers:
            parts.append(text[start:position])
            start = position + 1
        at_start = character in "([{,:" or (at_start and character.isspace())
        position += 1
    return text.split(",") if closers else [*parts, text[start:]]
