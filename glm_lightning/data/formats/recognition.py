"""Which format rows have: found by name, or from the first rows of a file."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from glm_lightning.data import formats
from glm_lightning.data.formats.base import Format, RowKind
from glm_lightning.data.formats.fields import NAME_COLUMNS, keys_of, repair
from glm_lightning.data.formats.prompt_response import PromptResponse
from glm_lightning.data.reading import Row
from glm_lightning.types import UserError

NUM_ROWS = 100
"""How many rows are looked at."""


@functools.cache
def every() -> dict[str, type[RowKind[Any]]]:
    """The class of each format, by the name of its file."""
    found: dict[str, type[RowKind[Any]]] = {}
    for info in pkgutil.iter_modules(formats.__path__):
        module = importlib.import_module(f"{formats.__name__}.{info.name}")
        own = [each for each in vars(module).values() if inspect.isclass(each) and each.__module__ == module.__name__]
        for each in own:
            if issubclass(each, RowKind) and not inspect.isabstract(each):
                found[info.name] = each
    return found


def named(name: str) -> RowKind[Any]:
    """The format of that name with its usual columns.

    Raises:
        UserError: there is none.
    """
    if name not in every():
        near = get_close_matches(name, every(), n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(f"data.format is {name!r}: must be auto or one of {', '.join(every())}{hint}")
    return every()[name]()


def recognise(rows: Sequence[Row], path: Path) -> RowKind[Any]:
    """The format that at least half of a file's first rows have.

    Raises:
        UserError: there is none, or there are several that as many rows have.
    """
    candidates = [dialect for each in every().values() for dialect in each.dialects()]
    fitting = {candidate: sum(candidate.fits(row.value) for row in rows) for candidate in candidates}
    most = max(fitting.values(), default=0)
    best = [candidate for candidate, count in fitting.items() if count == most]
    best = [candidate for candidate in best if not candidate.yields] or best
    if most < len(rows) / 2 or (len(best) > 1 and most < len(rows)):
        raise UserError(_unknown(rows, path, fitting))
    if len(best) > 1:
        names = ", ".join(map(described, best))
        raise UserError(f"{path}: its rows may be read as {names}; say which: data.format={best[0].name}, or {_NODE}")
    return _without_repetition(best[0], [row.value for row in rows])


def recognise_questions(rows: Sequence[Row], path: Path) -> RowKind[Any]:
    """The format of rows that may lack their answers: the first that most rows have if they are given some.

    Raises:
        UserError: there is none.
    """
    try:
        return recognise(rows, path)
    except UserError:
        dialects = [dialect for each in every().values() if issubclass(each, Format) for dialect in each.dialects()]
        fitting = {each: sum(each.fits(each.answered(row.value)) for row in rows) for each in dialects}
        best = max(fitting, key=lambda each: (fitting[each], not each.yields))
        if fitting[best] < len(rows) / 2:
            raise
        return best


_NODE = "data=... with the names of your columns"


def described(format: RowKind[Any]) -> str:
    """A format's name, with those of its settings that are not the usual ones."""
    usual = type(format)().knobs
    changed = [f"{key}={value}" for key, value in format.knobs.items() if value != usual[key]]
    return f"{format.name} ({', '.join(changed)})" if changed else format.name


def _without_repetition(format: RowKind[Any], rows: Sequence[Mapping[str, Any]]) -> RowKind[Any]:
    """THUDM's chats have a row for every turn: there, the answers of a history are learned in rows of their own."""
    if not isinstance(format, PromptResponse):
        return format
    turns = [[row.get(format.prompt), row.get(format.response)] for row in rows]
    histories = [row.get(format.history) for row in rows]
    repeats = any(
        isinstance(history, list) and history[-1:] == [turn]
        for turn, history in zip(turns, histories[1:], strict=False)
    )
    return replace(format, learn_history=not repeats)


def _unknown(rows: Sequence[Row], path: Path, fitting: Mapping[RowKind[Any], int]) -> str:
    """What is said of rows of no format, or of several."""
    if not any(fitting.values()):
        first = rows[0]
        texts = [key for key, value in first.value.items() if isinstance(value, str)]
        node = (
            "data=prompt_response data.format.prompt={} data.format.response={}".format(*texts) if texts[1:] else _NODE
        )
        advice = f"name the columns: {node}"
        if (likely := repair(first.value)) != NAME_COLUMNS:
            advice = f"{likely}, or {advice}"
        return f"{path}:{first.line}: rows of no format that is known; the keys are {keys_of(first.value)}; {advice}"
    firsts: dict[int, str] = {}
    for candidate in sorted(filter(fitting.get, fitting), key=lambda each: each.yields):
        line = next(row.line for row in rows if candidate.fits(row.value))
        firsts.setdefault(line, f"line {line} looks like {described(candidate)}")
    found = ", ".join(firsts[line] for line in sorted(firsts))
    return f"{path}: rows of several formats: {found}; give each format a file of its own"
