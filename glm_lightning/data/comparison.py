"""Rows that say the same, exactly or nearly, within one part of the data and in two of them."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from glm_lightning.data.cache import code_of
from glm_lightning.data.dataset import Dataset
from glm_lightning.data.findings import Finding
from glm_lightning.data.gate import Gate
from glm_lightning.data.judging import Kind, similarity
from glm_lightning.data.progress import say
from glm_lightning.files import digest

Indices = npt.NDArray[np.int64]

_BLOCK = 1 << 16
"""Sketches that are held at once: 4 MiB."""


@dataclass(frozen=True, slots=True)
class Shared:
    """Rows of ``part`` that say what a row of ``other`` says; the two are the same for copies within one part.

    Args:
        kind: of the fault.
        part: the part whose rows are counted: the later of two.
        other: the part in which they stand too.
        pairs: (rows, 2) index of a sample of each row, and of one of the first row in ``other`` that says the same.
        surplus: (rows,) a sample of each row that is left out if this is an error: later copies, or the rows of
            ``other`` (the training rows, for they are many).
    """

    kind: Kind
    part: str
    other: str
    pairs: Indices
    surplus: Indices


@dataclass(frozen=True, slots=True)
class _Part:
    """For each row of a part: index of its first sample, and labels that are equal for rows that say the same."""

    samples: Indices
    exact: Indices
    near: Indices


def compare(parts: Mapping[str, Dataset], *, folder: Path) -> list[Shared]:
    """What rows share; found again in ``folder`` where the same parts were compared before."""
    identity = [(name, part.fingerprint, part.selection) for name, part in parts.items()]
    file = folder / f"shared-{digest(identity, code_of(sys.modules[__name__], similarity))}.npz"
    if file.is_file():
        shared = _kept(file)
    else:
        shared = list(_compared(parts))
        try:
            _save(file, shared)
        except OSError as error:  # a folder of others, with all that is needed in it
            say(f"data: rows will be compared again at the next start: {error}")
    order = [kind.name for kind in similarity.BETWEEN_ROWS]
    return sorted(shared, key=lambda each: (list(parts).index(each.part), order.index(each.kind.name)))


def surplus(parts: Mapping[str, Dataset], shared: Iterable[Shared], *, gate: Gate) -> dict[str, list[Finding]]:
    """By part: the rows that are to be left out where sharing them is an error."""
    found: dict[str, list[Finding]] = {}
    for each in shared:
        if gate.severity_of(each.kind.name) == "error":
            part = parts[each.other]
            where = "another row" if each.part == each.other else f"data.{each.part}"
            found.setdefault(each.other, []).extend(_finding(part, int(i), each.kind, where) for i in each.surplus)
    return found


def _finding(part: Dataset, index: int, kind: Kind, where: str) -> Finding:
    origin, row = part.origin(index), int(part.rows[index])
    text = f":{origin.line}: says what {where} says; remove one ({kind.name})"
    return Finding(kind.name, part.files.index(origin.path), origin.line, row, text)


def _kept(file: Path) -> list[Shared]:
    kinds = {kind.name: kind for kind in similarity.BETWEEN_ROWS}
    with np.load(file, allow_pickle=False) as kept:
        names = sorted({name.rpartition("/")[0] for name in kept.files})
        return [
            Shared(
                kinds[kind], part, other, kept[f"{kind}/{part}/{other}/pairs"], kept[f"{kind}/{part}/{other}/surplus"]
            )
            for kind, part, other in (name.split("/") for name in names)
        ]


def _save(file: Path, shared: list[Shared]) -> None:
    arrays: dict[str, Any] = {}
    for each in shared:
        name = f"{each.kind.name}/{each.part}/{each.other}"
        arrays |= {f"{name}/pairs": each.pairs, f"{name}/surplus": each.surplus}
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.stem}.{os.getpid()}.part.npz")
    np.savez(part, **arrays)
    part.replace(file)


def _compared(parts: Mapping[str, Dataset]) -> Iterator[Shared]:
    labelled = _labelled(parts)
    for name, part in labelled.items():
        yield from _copies(name, part)
    for (other, first), (name, second) in combinations(labelled.items(), 2):
        yield from _leaks(name, second, other, first)


def _labelled(parts: Mapping[str, Dataset]) -> dict[str, _Part]:
    samples = {name: part.first_of_rows for name, part in parts.items()}
    exact = similarity.exact_groups(np.concatenate([parts[name].contents[i] for name, i in samples.items()]))
    ends = np.cumsum([len(first) for first in samples.values()])[:-1]
    contents, inverse = np.unique(exact, return_inverse=True)
    cuts = np.split(contents, np.searchsorted(contents, ends))
    begins = [0, *ends]
    chosen = {name: samples[name][cut - start] for name, cut, start in zip(parts, cuts, begins, strict=True)}
    near = contents[_near_groups(parts, chosen)][inverse]
    columns = zip(samples.items(), np.split(exact, ends), np.split(near, ends), strict=True)
    return {name: _Part(first, its_exact, its_near) for (name, first), its_exact, its_near in columns}


def _near_groups(parts: Mapping[str, Dataset], samples: Mapping[str, Indices]) -> Indices:
    """Groups of samples of several parts, one part behind the other, by `similarity.near_groups`.

    The sketches lie in a file meanwhile, so that only what is looked at takes memory.
    """
    with tempfile.TemporaryFile() as scratch:
        shape = sum(map(len, samples.values())), similarity.NUM_MINIMA
        sketches = np.memmap(scratch, np.uint8, "w+", shape=shape)
        end = 0
        for name, chosen in samples.items():
            for first in range(0, len(chosen), _BLOCK):
                block = parts[name].sketches(chosen[first : first + _BLOCK])
                sketches[end : end + len(block)] = block
                end += len(block)
        return similarity.near_groups(sketches)


def _copies(name: str, part: _Part) -> Iterator[Shared]:
    later, earlier = _repeated(part.exact)
    yield from _shared(similarity.DUPLICATE, name, part, later, earlier)
    contents = np.setdiff1d(np.arange(len(part.exact)), later)
    later, earlier = _repeated(part.near[contents])
    yield from _shared(similarity.NEAR_DUPLICATE, name, part, contents[later], contents[earlier])


def _repeated(labels: Indices) -> tuple[Indices, Indices]:
    """Positions whose label stood before, and the first position of that label for each."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    later = np.flatnonzero(first[inverse] != np.arange(len(labels)))
    return later, first[inverse][later]


def _shared(kind: Kind, name: str, part: _Part, later: Indices, earlier: Indices) -> Iterator[Shared]:
    if len(later):
        pairs = np.stack([part.samples[later], part.samples[earlier]], axis=1)
        yield Shared(kind, name, name, pairs, pairs[:, 0])


def _leaks(name: str, part: _Part, other: str, first: _Part) -> Iterator[Shared]:
    exact = np.isin(part.exact, first.exact)
    near = np.isin(part.near, first.near) & ~exact
    for kind, rows, mine, theirs in (
        (similarity.LEAK, exact, part.exact, first.exact),
        (similarity.NEAR_LEAK, near, part.near, first.near),
    ):
        if rows.any():
            labels, where = np.unique(theirs, return_index=True)
            partner = where[np.searchsorted(labels, mine[rows])]
            pairs = np.stack([part.samples[rows], first.samples[partner]], axis=1)
            surplus = first.samples[np.isin(theirs, mine[rows])]
            yield Shared(kind, name, other, pairs, surplus)
