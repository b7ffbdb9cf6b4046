"""Encoded samples in a memory-mapped file."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from glm_lightning.data import cache
from glm_lightning.data.columns import binaries, numbers, truths
from glm_lightning.data.encoding import Encoder, digest
from glm_lightning.data.findings import Finding, Findings
from glm_lightning.data.gate import Gate
from glm_lightning.data.inputs import Inputs
from glm_lightning.data.reading import Problems
from glm_lightning.data.rows import SCHEMA
from glm_lightning.types import IGNORE, Conversation, Document, Item, Origin, Preference, Sample, UserError

if TYPE_CHECKING:
    from torch import Tensor

Int32s = npt.NDArray[np.int32]
Indices = npt.NDArray[np.int64]


@final
class Store:
    """The file of encoded samples, and the sources it was made from."""

    def __init__(self, folder: Path, *, files: Sequence[Path], format: Inputs) -> None:
        self.folder = folder
        self.files = list(files)
        self.format = format
        self.counts: dict[str, Any] = json.loads((folder / cache.COUNTS).read_text(encoding="utf-8"))
        self._source = pa.memory_map(str(folder / cache.ARROW))
        reader = pa.ipc.open_file(self._source)
        self._batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        self._ends = np.cumsum([batch.num_rows for batch in self._batches], dtype=np.int64)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.folder, self.files, self.format)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def column(self, name: str) -> Any:
        """A column with one value a sample, as an Arrow array."""
        return pa.chunked_array([batch.column(name) for batch in self._batches], SCHEMA.field(name).type)

    def numbers(self, name: str) -> Int32s:
        """A column of integers. Shape (samples,)."""
        return numbers(self.column(name))

    def sample(self, index: int) -> Sample:
        """Ids and labels of one sample."""
        batch, row = self._place(index)
        ids, learned = numbers(batch.column("input_ids")[row].values), truths(batch.column("learned")[row].values)
        truncated, num_chosen = (batch.column(name)[row].as_py() for name in ("truncated", "num_chosen"))
        return Sample(ids.tolist(), np.where(learned, ids, IGNORE).tolist(), truncated, num_chosen)

    @cached_property
    def lengths(self) -> Int32s:
        """Tokens of each sample. Shape (samples,)."""
        return self.numbers("length")

    @cached_property
    def num_supervised(self) -> Int32s:
        """Labels of each sample that the loss sees: all but the first position's. Shape (samples,)."""
        return self.numbers("supervised")

    @cached_property
    def rows(self) -> Int32s:
        """Number of the row of each sample: equal for the samples of one row. Shape (samples,)."""
        return self.numbers("row")

    def place(self, index: int) -> tuple[int, int]:
        """File number and line of a sample."""
        batch, row = self._place(index)
        return batch.column("file")[row].as_py(), batch.column("line")[row].as_py()

    @cached_property
    def truncated(self) -> npt.NDArray[np.bool_]:
        """Which samples were shortened. Shape (samples,)."""
        return truths(self.column("truncated"))

    def digest(self, index: int) -> bytes:
        """16 bytes that name the content of a sample's conversation."""
        batch, row = self._place(index)
        return bytes(batch.column("digest")[row].as_py())

    @cached_property
    def num_chosen(self) -> Int32s:
        """Of pairs, tokens of the chosen sequence; 0 where there are none. Shape (samples,)."""
        return self.numbers("num_chosen")

    @cached_property
    def contents(self) -> npt.NDArray[np.uint64]:
        """The first half of each digest. Shape (samples,)."""
        words = [binaries(batch.column("digest")).view(np.uint64)[:, 0] for batch in self._batches]
        return np.concatenate([*words, np.empty(0, np.uint64)])

    def sketches(self, indices: Indices) -> npt.NDArray[np.uint8]:
        """What near copies are found by, see `similarity`, of some samples in their order. Shape (indices, 64)."""
        cuts = np.searchsorted(indices, [0, *self._ends])
        parts = [
            binaries(batch.column("sketch"))[indices[start:stop] - (end - batch.num_rows)]
            for batch, end, (start, stop) in zip(self._batches, self._ends, itertools.pairwise(cuts), strict=True)
            if start < stop
        ]
        return np.concatenate([*parts, np.empty((0, SCHEMA.field("sketch").type.byte_width), np.uint8)])

    @cached_property
    def findings(self) -> Findings:
        """What was found to be wrong with rows."""
        return Findings(self.folder / cache.FINDINGS)

    def again(self, samples: Collection[int]) -> Iterator[tuple[int, dict[str, Any], Item]]:
        """Some samples with their rows and what these hold, read again from the sources as far as they are what they
        were.
        """
        by_file: dict[int, dict[int, list[int]]] = {}
        for sample in sorted(samples):
            file, line = self.place(sample)
            by_file.setdefault(file, {}).setdefault(line, []).append(sample)
        for file, wanted in by_file.items():
            path = self.files[file]
            for row in self.format.read(path, Problems(), wanted):
                try:
                    parsed = self.format.parse(row.value, Origin(path, row.line))
                except UserError:
                    continue  # another row stands there now
                same = digest(parsed)
                yield from ((each, row.value, parsed) for each in wanted[row.line] if self.digest(each) == same)

    def _place(self, index: int) -> tuple[Any, int]:
        """The record batch of a sample, and its row in that."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        batch = self._batches[number]
        return batch, index - int(self._ends[number]) + batch.num_rows


@final
class Dataset:
    """Samples by index, with the row that each came from. A subset shares its file with the whole."""

    def __init__(self, store: Store, *, cached: bool, indices: Indices | None = None) -> None:
        self._store = store
        self._indices = np.arange(len(store), dtype=np.int64) if indices is None else indices
        self.refused: list[Finding] = []
        """What was wrong with the rows that were left out."""
        self.cached = cached
        """Whether the encoding was found on disk."""
        self.given: Callable[[Sequence[int]], dict[str, Tensor]] | None = None
        """Looks up what was computed of samples ahead, by their numbers in the file; None: nothing was."""

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def lengths(self) -> Int32s:
        """Tokens of each sample. Shape (samples,)."""
        return self._store.lengths[self._indices]

    @property
    def num_supervised(self) -> Int32s:
        """Labels of each sample that the loss sees. Shape (samples,)."""
        return self._store.num_supervised[self._indices]

    @property
    def has_texts(self) -> bool:
        """Whether there are texts among its rows, which are no conversations."""
        return not self._store.numbers("turns")[self._indices].all()

    @property
    def paired(self) -> bool:
        """Whether its samples are pairs of a chosen and a rejected sequence."""
        return bool(self._store.num_chosen[self._indices].any())

    @property
    def widths(self) -> Int32s:
        """Positions that each sample takes in a micro-batch, the longer sequence of a pair. Shape (samples,)."""
        chosen = self._store.num_chosen[self._indices]
        return np.asarray(np.maximum(chosen, self.lengths - chosen), dtype=np.int32)

    @property
    def num_truncated(self) -> int:
        """How many samples were shortened to the maximum length."""
        return int(self._store.truncated[self._indices].sum())

    def numbers(self, name: str) -> Int32s:
        """A column of integers, see `rows.SCHEMA`. Shape (samples,)."""
        return self._store.numbers(name)[self._indices]

    @property
    def num_rows(self) -> int:
        """How many rows the samples come from."""
        return int(self._has_row.sum())

    @cached_property
    def _has_row(self) -> npt.NDArray[np.bool_]:
        """Whether a row has samples here, by its number. Shape (rows among all sources, at most,)."""
        return _marked(self.rows)

    @cached_property
    def rows(self) -> Int32s:
        """A number for each sample that is equal for samples of one row and grows along the sources."""
        return self._store.rows[self._indices]

    @cached_property
    def first_of_rows(self) -> Indices:
        """Index of the first sample of each row, in the order of the rows. Shape (rows,)."""
        steps = np.diff(self.rows, prepend=-1)
        assert (steps >= 0).all(), "samples of a row are neighbours"
        return np.flatnonzero(steps)

    def of_rows(self, numbers: Indices) -> Dataset:
        """The samples of some rows, which are numbered as in `first_of_rows`."""
        first = self.first_of_rows
        samples = np.repeat(_marked(numbers, size=len(first)), np.diff(first, append=len(self)))
        return self.subset(np.flatnonzero(samples))

    @property
    def fingerprint(self) -> str:
        """Names the sources, the format and everything else the samples were made with."""
        return self._store.folder.name

    @property
    def identity(self) -> str:
        """Names the ids and labels of all samples of the file that these lie in; see `rows.Identity`."""
        return str(self._store.counts["identity"])

    @property
    def files(self) -> list[Path]:
        """The files the samples come from."""
        return self._store.files

    def sample(self, index: int) -> Sample:
        """Ids and labels of one sample."""
        return self._store.sample(int(self._indices[index]))

    @property
    def indices(self) -> Indices:
        """Numbers of the samples in the file that they share with others. Shape (samples,)."""
        return self._indices

    @property
    def selection(self) -> str:
        """Names the samples that this has of their file, and their order."""
        return hashlib.sha256(self._indices.tobytes()).hexdigest()[:32]

    def faults(self) -> list[tuple[int, Finding]]:
        """How many rows of this data set have a kind of fault, and the first of them, for each kind that there is."""
        return self._store.findings.by_kind(self._has_row)

    def without(self, findings: Sequence[Finding]) -> Dataset:
        """All but the rows of ``findings``, which are kept as the reason."""
        gone = [each.row for each in findings if each.row >= 0]
        left = ~_marked(np.array(gone), size=len(self._has_row))[self.rows] if gone else slice(None)
        part = Dataset(self._store, cached=self.cached, indices=self._indices[left])
        part.refused = [*self.refused, *findings]
        return part

    def quarantine(self) -> list[dict[str, Any]]:
        """The rows that were left out: file, line, kind of fault, reason, and the row where it can be read."""
        rows = self._store.rows
        values: dict[int, Any] = {each.row: each.value for each in self.refused if each.value is not None}
        unknown = np.array([each.row for each in self.refused if each.row not in values], np.int64)
        samples = np.flatnonzero(_marked(unknown[unknown >= 0], size=int(rows.max(initial=-1)) + 1)[rows])
        values |= {int(rows[sample]): value for sample, value, _ in self._store.again(samples.tolist())}
        return [
            {
                "file": str(self.files[each.file]),
                "line": each.line,
                "kind": each.kind,
                "reason": each.text.removeprefix(f":{each.line}: "),
                "row": values.get(each.row) if each.value is None else each.value,
            }
            for each in self.refused
        ]

    def subset(self, indices: Sequence[int] | npt.NDArray[np.integer[Any]]) -> Dataset:
        """The samples at ``indices``, in that order."""
        chosen = self._indices[np.asarray(indices, dtype=np.int64)]
        return Dataset(self._store, cached=self.cached, indices=chosen)

    def once(self) -> Dataset:
        """Each of its samples once, in the order of the file."""
        return Dataset(self._store, cached=self.cached, indices=np.unique(self._indices))

    def digest(self, index: int) -> bytes:
        """16 bytes that name the content of the sample's row."""
        return self._store.digest(int(self._indices[index]))

    @property
    def contents(self) -> npt.NDArray[np.uint64]:
        """A word for each sample, equal for equal contents: half of the digest, so of five million different contents
        two are taken for the same with a chance of one in a million. Shape (samples,).
        """
        return self._store.contents[self._indices]

    def sketches(self, indices: Indices) -> npt.NDArray[np.uint8]:
        """What near copies are found by, see `similarity`, of some samples in their order. Shape (indices, 64)."""
        return self._store.sketches(self._indices[indices])

    def origin(self, index: int) -> Origin:
        """File and line of the row."""
        file, line = self._store.place(int(self._indices[index]))
        return Origin(self._store.files[file], line)

    def conversation(self, index: int) -> Conversation:
        """The turns that a sample covers, of a pair the chosen ones; see `conversations`."""
        return self.conversations([index])[0]

    def conversations(self, indices: Iterable[int]) -> list[Conversation]:
        """The turns that some samples cover, read again from the source. For the few that are shown or scored.

        Raises:
            UserError: the source has changed since it was encoded.
        """
        chosen = list(indices)
        samples = [int(self._indices[index]) for index in chosen]
        found = {sample: _asked(item) for sample, _, item in self._store.again(set(samples))}
        if changed := next((index for index, sample in zip(chosen, samples, strict=True) if sample not in found), None):
            raise UserError(f"{self.origin(changed)}: has changed since it was encoded in this run; start again")
        turns = self._store.numbers("turns")
        return [replace(found[each], messages=found[each].messages[: turns[each]]) for each in samples]


def _asked(item: Item) -> Conversation:
    """The conversation in a row, of a pair the chosen one."""
    assert not isinstance(item, Document), "nobody is asked by a text"
    return item.chosen if isinstance(item, Preference) else item


def _marked(numbers: npt.NDArray[np.integer[Any]], *, size: int = 0) -> npt.NDArray[np.bool_]:
    """An array that is true at ``numbers``, with room for the largest, and ``size`` entries at least."""
    marks = np.zeros(max(size, int(numbers.max(initial=-1)) + 1), np.bool_)
    marks[numbers] = True
    return marks


def load(files: Sequence[Path], *, format: Inputs, encoder: Encoder, folder: Path, gate: Gate) -> Dataset:
    """The encoded samples of ``files``, from the cache in ``folder`` where they are known; without the bad rows.

    Raises:
        UserError: everything that is wrong with the rows, as ``gate`` has it.
    """
    target, cached = cache.build(files, format=format, encoder=encoder, folder=folder)
    store = Store(target, files=files, format=format)
    whole = Dataset(store, cached=cached)
    return whole.without(gate.admit(store.findings.of(gate.errors), files=files, num_rows=store.counts["rows"]))


def _reopen(folder: Path, files: list[Path], format: Inputs) -> Store:
    return Store(folder, files=files, format=format)
