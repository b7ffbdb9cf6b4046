"""What yaml says about the rows of a part of the data: where they are, how they are read, how many are learned."""

from __future__ import annotations

import codecs
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self, cast, final

from glm_lightning.data import reading
from glm_lightning.data.finding import find, passed_over
from glm_lightning.data.formats import RowKind
from glm_lightning.data.formats.recognition import NUM_ROWS, described, named, recognise, recognise_questions
from glm_lightning.data.formats.text import Text
from glm_lightning.data.hub import HubName
from glm_lightning.data.reading import Problems, Row
from glm_lightning.data.reading.opening import suffix_of
from glm_lightning.files import digest, fingerprint
from glm_lightning.types import Conversation, Document, Item, Origin, Preference, UserError

IN_WORDS: Mapping[type[Item], str] = {
    Conversation: "conversations",
    Document: "texts",
    Preference: "pairs of a chosen and a rejected answer",
}
"""What rows hold, for messages."""

_LEARNED_BY: Mapping[type[Item], str] = {
    Conversation: "learn the answers with objective=sft",
    Document: "learn the texts with objective=pretrain",
    Preference: "learn from the pairs with objective=preference",
}

AUTO = "auto"
"""The format that stands for recognising it."""

_AMOUNTS = ("weight", "rows", "repeat", "share")
_KEYS = ("path", "format", "encoding", *_AMOUNTS)


@final
@dataclass(frozen=True, slots=True)
class Amount:
    """How many rows of a source are learned in an epoch; at most one is given, none is all of them once.

    Args:
        weight: rows in proportion to the weights of the other sources that have one.
        rows: so many.
        repeat: each row so many times; below 1 a share of them.
        share: so large a part of all rows of the epoch, whatever the other sources give.
    """

    weight: float | None = None
    rows: int | None = None
    repeat: float | None = None
    share: float | None = None


@final
@dataclass(frozen=True, slots=True)
class Source:
    """An entry of ``data.train``, ``data.val`` or ``data.test``. A format or encoding of None is found out."""

    key: str
    path: str | Path
    format: RowKind[Any] | None
    encoding: str | None
    amount: Amount

    def says_no_more_than(self, other: Source) -> bool:
        """Whether a file of both may be read as a file of the other one alone."""
        same = (self.format, self.encoding) == (other.format, other.encoding)
        return same and self.amount == other.amount == Amount()

    def found(self) -> list[Path]:
        """Its files, as far as they can be known before anything is read or downloaded.

        Raises:
            UserError: there are none, or the libraries that download them are not installed.
        """
        if hub := HubName.of(str(self.path), key=self.key):
            hub.check(key=self.key)
            return []
        return find(self.path, key=self.key)

    def files(self) -> list[Path]:
        """Its files, downloaded if they lie on a hub."""
        hub = HubName.of(str(self.path), key=self.key)
        return hub.fetch(key=self.key) if hub else find(self.path, key=self.key)

    def passed_over(self) -> list[Path]:
        """Files that lie in its folder and are not read."""
        return [] if HubName.of(str(self.path), key=self.key) else passed_over(self.path)


@final
@dataclass(frozen=True, slots=True)
class File:
    """A file with the way it is read."""

    path: Path
    source: int  # number of its source
    format: RowKind[Any]
    recognised: bool
    encoding: str | None

    def read(self, problems: Problems, lines: Collection[int] | None = None) -> Iterator[Row]:
        """Its rows, or those of some lines; see `reading.read`."""
        documents = self.format.documents if isinstance(self.format, Text) else "line"
        return reading.read(self.path, problems, encoding=self.encoding, documents=documents, lines=lines)


@final
@dataclass(frozen=True)
class Inputs:
    """The files of one part of the data. Each is read and parsed in its own way, and once.

    ``repeated`` are files that were named again; sources without others are left out.
    """

    files: tuple[File, ...]
    sources: tuple[Source, ...]
    repeated: tuple[Path, ...] = ()

    @classmethod
    def of(cls, sources: Sequence[Source], *, asked: bool = False) -> Self:
        """Find and, where need be, download and recognise the files of all sources; rows ``asked`` may lack answers.

        Raises:
            UserError: everything that is not there, stands in sources that differ or has no format that is known.
        """
        files: dict[Path, File] = {}
        kept: list[Source] = []
        repeated: list[Path] = []
        problems: list[str] = []
        for source in sources:
            number, num_files = len(kept), len(files)
            try:
                for path in source.files():
                    first = files.get(path.resolve())
                    if first is None:
                        files[path.resolve()] = _file(path, number, source, asked=asked)
                    elif first.source == number or source.says_no_more_than(kept[first.source]):
                        repeated.append(path)
                    else:
                        problems.append(f"{source.key}: {path} is in two entries that say different things of it")
            except UserError as error:
                problems += error.problems
            if len(files) > num_files:
                kept.append(source)
        if problems:
            raise UserError(problems)
        return cls(tuple(files.values()), tuple(kept), tuple(repeated))

    @property
    def paths(self) -> list[Path]:
        """Where the files are."""
        return [file.path for file in self.files]

    def read(self, path: Path, problems: Problems, lines: Collection[int] | None = None) -> Iterator[Row]:
        """The rows of one of the files, or those of some of its lines."""
        return self._by_path[path].read(problems, lines)

    def parse(self, row: Mapping[str, Any], origin: Origin) -> Item:
        """What is in a row of one of the files; see `RowKind.parse`."""
        return cast(Item, self._by_path[origin.path].format.parse(row, origin))

    @property
    def fingerprint(self) -> str:
        """Changes with everything that decides what is read from the same bytes."""
        code = [fingerprint(file) for file in sorted(Path(reading.__file__).parent.glob("*.py"))]
        # a name's ending decides how the bytes are read: a .txt that is renamed to .jsonl has other rows
        return digest(code, [(file.format.fingerprint, file.encoding, suffix_of(file.path)) for file in self.files])

    def check_kind(self, wanted: Collection[type[Item]], *, key: str) -> None:
        """Raise `UserError` for files whose rows are none of the ``wanted`` kinds, which ``key`` takes."""
        kinds = " or ".join(IN_WORDS[kind] for kind in wanted)
        if problems := [
            f"{file.path}: its rows (format {file.format.name}) are {IN_WORDS[file.format.holds]}, and {key} takes "
            f"{kinds} here; give such rows, or {_LEARNED_BY[file.format.holds]}"
            for file in self.files
            if file.format.holds not in wanted
        ]:
            raise UserError(problems)

    def recognised(self) -> dict[str, int]:
        """How many files were recognised as each format, in words."""
        names = [described(file.format) for file in self.files if file.recognised]
        return {name: len(list(group)) for name, group in itertools.groupby(sorted(names))}

    @cached_property
    def _by_path(self) -> dict[Path, File]:
        return {file.path: file for file in self.files}


def sources_of(value: Any, *, key: str, format: str | RowKind[Any] = AUTO, encoding: str | None = None) -> list[Source]:
    """The sources of a part, from what stands in yaml: an entry, or a list of them.

    An entry is a path or a hub's name, or a mapping with ``path`` and its own ``format``, ``encoding`` and one of
    ``weight``, ``rows``, ``repeat`` and ``share``.

    Args:
        value: what stands in yaml.
        key: its yaml key.
        format: of entries without one.
        encoding: of entries without one.

    Raises:
        UserError: everything that is wrong with the entries.
    """
    single = isinstance(value, str | Path | Mapping)
    problems: list[str] = [] if single or len(value) else [f"{key} is an empty list: give a file"]
    sources = []
    for number, entry in enumerate([value] if single else value):
        where = key if single else f"{key}[{number}]"
        given = dict(entry) if isinstance(entry, Mapping) else {"path": entry}
        faults = _faults(given, where)
        try:
            found = _format(given.get("format", format))
            codec = given.get("encoding", encoding)
            if codec is not None:
                _check_encoding(codec, key=f"{where}.encoding" if "encoding" in given else "data.encoding")
        except UserError as error:
            faults += error.problems
        if not faults:
            amount = Amount(*(given.get(name) for name in _AMOUNTS))
            sources.append(Source(key, given["path"], found, codec, amount))
        problems += faults
    if sum(source.amount.share or 0.0 for source in sources) >= 1:
        problems.append(f"{key}: the shares are 1 or more together, so that nothing is left for the other sources")
    if problems:
        raise UserError(problems)
    return sources


def _check_encoding(name: str, *, key: str) -> None:
    """Raise `UserError` if Python knows no text encoding of that name."""
    try:
        codecs.lookup(name)
        b"".decode(name)
    except (LookupError, UnicodeError, TypeError, ValueError):
        raise UserError(f"{key} is {name!r}: no such encoding; give one as gb18030, big5 or utf-16-le") from None


def _faults(entry: dict[str, Any], where: str) -> list[str]:
    """What is wrong with an entry's keys and numbers."""
    faults = [f"{where}.{name}: no such key; an entry takes {', '.join(_KEYS)}" for name in entry if name not in _KEYS]
    if not isinstance(entry.get("path"), str | Path):
        faults.append(f"{where}.path is {entry.get('path')!r}: must be a file, a folder, a glob or a hub's name")
    amounts = {name: entry[name] for name in _AMOUNTS if entry.get(name) is not None}
    if len(amounts) > 1:
        faults.append(f"{where}: {' and '.join(amounts)} say the same in different ways; give one of them")
    for name, amount in amounts.items():
        whole, most = name == "rows", 1 if name == "share" else 1e9
        if isinstance(amount, bool) or not isinstance(amount, int if whole else int | float) or not 0 < amount < most:
            kind = "between 0 and 1" if name == "share" else f"{'a whole number' if whole else 'a number'} above 0"
            faults.append(f"{where}.{name} is {amount!r}: must be {kind}")
    return faults


def _format(format: str | RowKind[Any] | None) -> RowKind[Any] | None:
    if isinstance(format, RowKind):
        return format
    return None if format in (None, AUTO) else named(str(format))


def _file(path: Path, number: int, source: Source, *, asked: bool) -> File:
    if source.format is not None:
        return File(path, number, source.format, False, source.encoding)
    problems = Problems()
    rows = list(itertools.islice(reading.read(path, problems, encoding=source.encoding), NUM_ROWS))
    if not rows:
        raise UserError(problems.texts)
    found = recognise_questions(rows, path) if asked else recognise(rows, path)
    return File(path, number, found, True, source.encoding)
