"""Encoded samples in a memory-mapped file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from glm_lightning.data import cache
from glm_lightning.data.encoding import Encoder, digest
from glm_lightning.data.findings import Finding, Findings
from glm_lightning.data.gate import Gate
from glm_lightning.data.inputs import Inputs
from glm_lightning.data.reading import Problems
from glm_lightning.data.rows import SCHEMA
from glm_lightning.types import IGNORE, Conversation, Origin, Sample, UserError

Int32s = npt.NDArray[np.int32]
Indices = npt.NDArray[np.int64]


@final
class Store:
    """The file of encoded samples, and the sources it was made from."""

    def __init__(self, folder: Path, *, files: Sequence[Path], format: Inputs) -> None:
        self.folder = folder
        self.files = list(files)
        self.format = format
        self.counts: dict[str, int] = json.loads((folder / cache.COUNTS).read_text(encoding="utf-8"))
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
        return np.asarray(self.column(name).to_numpy(), dtype=np.int32)

    def sample(self, index: int) -> tuple[Int32s, npt.NDArray[np.bool_], bool]:
        """Ids, mask of what is learned, and whether the sample was shortened."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        batch = self._batches[number]
        row = index - int(self._ends[number]) + batch.num_rows
        ids, learned = (
            batch.column(name)[row].values.to_numpy(zero_copy_only=False) for name in ("input_ids", "learned")
        )
        return ids, learned, batch.column("truncated")[row].as_py()

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

    @cached_property
    def places(self) -> npt.NDArray[np.int32]:
        """File number and line of each sample. Shape (samples, 2)."""
        return np.stack([self.numbers("file"), self.numbers("line")], axis=1)

    @cached_property
    def truncated(self) -> npt.NDArray[np.bool_]:
        """Which samples were shortened. Shape (samples,)."""
        return np.asarray(self.column("truncated").to_numpy(), dtype=np.bool_)

    @cached_property
    def digests(self) -> npt.NDArray[np.uint8]:
        """Names of the conversations' contents. Shape (samples, 16)."""
        return self._bytes("digest")

    @property
    def sketches(self) -> npt.NDArray[np.uint8]:
        """What near copies are found by, see `similarity`. Shape (samples, 64)."""
        return self._bytes("sketch")

    @cached_property
    def findings(self) -> Findings:
        """What was found to be wrong with rows."""
        return Findings(self.folder / cache.FINDINGS)

    def again(self, samples: Collection[int]) -> Iterator[tuple[int, dict[str, Any], Conversation]]:
        """Some samples with their rows and the conversations in them, read again from the sources as far as they are
        what they were.
        """
        by_file: dict[int, dict[int, list[int]]] = {}
        for sample in sorted(samples):
            file, line = self.places[sample].tolist()
            by_file.setdefault(file, {}).setdefault(line, []).append(sample)
        for file, wanted in by_file.items():
            path = self.files[file]
            for row in self.format.read(path, Problems(), wanted):
                try:
                    parsed = self.format.parse(row.value, Origin(path, row.line))
                except UserError:
                    continue  # another row stands there now
                same = digest(parsed)
                yield from ((each, row.value, parsed) for each in wanted[row.line] if bytes(self.digests[each]) == same)

    @cached_property
    def identity(self) -> str:
        """Names the ids and labels of all samples in their order, whatever files, code and settings made them."""
        ids, learned = hashlib.sha256(self.lengths.tobytes()), hashlib.sha256()
        for batch in self._batches:
            ids.update(batch.column("input_ids").flatten().to_numpy())
            learned.update(batch.column("learned").flatten().to_numpy(zero_copy_only=False))
        return hashlib.sha256(ids.digest() + learned.digest()).hexdigest()[:32]

    def _bytes(self, name: str) -> npt.NDArray[np.uint8]:
        width = SCHEMA.field(name).type.byte_width
        parts = [
            np.frombuffer(each.column(name).buffers()[1], np.uint8, each.num_rows * width) for each in self._batches
        ]
        return np.concatenate([*parts, np.empty(0, np.uint8)]).reshape(-1, width)


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

    @property
    def fingerprint(self) -> str:
        """Names the sources, the format and everything else the samples were made with."""
        return self._store.folder.name

    @property
    def identity(self) -> str:
        """Names what the network sees of the file that the samples lie in; see `Store.identity`."""
        return self._store.identity

    @property
    def files(self) -> list[Path]:
        """The files the samples come from."""
        return self._store.files

    def sample(self, index: int) -> Sample:
        """Ids and labels of one sample."""
        ids, learned, truncated = self._store.sample(int(self._indices[index]))
        return Sample(ids.tolist(), np.where(learned, ids, IGNORE).tolist(), truncated)

    @property
    def indices(self) -> Indices:
        """Numbers of the samples in the file that they share with others. Shape (samples,)."""
        return self._indices

    def faults(self) -> list[tuple[int, Finding]]:
        """How many rows of this data set have a kind of fault, and the first of them, for each kind that there is."""
        return self._store.findings.by_kind(self._has_row)

    def without(self, findings: Sequence[Finding]) -> Dataset:
        """All but the rows of ``findings``, which are kept as the reason."""
        gone = _marked(np.array([each.row for each in findings if each.row >= 0], np.int64), size=len(self._has_row))
        part = self.subset(np.flatnonzero(~gone[self.rows])) if gone.any() else self.subset(np.arange(len(self)))
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

    def digest(self, index: int) -> bytes:
        """16 bytes that name the content of the sample's conversation."""
        return bytes(self._store.digests[self._indices[index]])

    @property
    def contents(self) -> npt.NDArray[np.uint64]:
        """A word for each sample, equal for equal contents: half of the digest, so of five million different contents
        two are taken for the same with a chance of one in a million. Shape (samples,).
        """
        words = np.ascontiguousarray(self._store.digests[:, :8]).view(np.uint64)
        return np.asarray(words[self._indices, 0], dtype=np.uint64)

    @property
    def sketches(self) -> npt.NDArray[np.uint8]:
        """What near copies are found by, see `similarity`. Shape (samples, 64)."""
        return self._store.sketches[self._indices]

    @property
    def file_numbers(self) -> Int32s:
        """The number of each sample's file among `files`. Shape (samples,)."""
        return np.asarray(self._store.places[self._indices, 0], dtype=np.int32)

    def origin(self, index: int) -> Origin:
        """File and line of the row."""
        file, line = self._store.places[self._indices[index]].tolist()
        return Origin(self._store.files[file], line)

    def conversation(self, index: int) -> Conversation:
        """The turns that a sample covers; see `conversations`."""
        return self.conversations([index])[0]

    def conversations(self, indices: Iterable[int]) -> list[Conversation]:
        """The turns that some samples cover, read again from the source. For the few that are shown or scored.

        Raises:
            UserError: the source has changed since it was encoded.
        """
        chosen = list(indices)
        samples = [int(self._indices[index]) for index in chosen]
        found = {sample: conversation for sample, _, conversation in self._store.again(set(samples))}
        if changed := next((index for index, sample in zip(chosen, samples, strict=True) if sample not in found), None):
            raise UserError(f"{self.origin(changed)}: has changed since it was encoded in this run; start again")
        turns = self._store.numbers("turns")
        return [replace(found[each], messages=found[each].messages[: turns[each]]) for each in samples]


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
