"""From rows as they were read to record batches: parsed, judged and encoded, a chunk at a time."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from glm_lightning.data import judging
from glm_lightning.data.columns import column, lists, numbers, truths
from glm_lightning.data.encoding import Encoded, Encoder, digest
from glm_lightning.data.findings import Finding
from glm_lightning.data.inputs import Inputs
from glm_lightning.data.judging import similarity
from glm_lightning.data.judging.kinds import Fault, kind_of
from glm_lightning.data.reading import Problems
from glm_lightning.types import Item, Origin, UserError

Int64s = npt.NDArray[np.int64]

SCHEMA = pa.schema(
    [
        ("input_ids", pa.list_(pa.int32())),
        ("learned", pa.list_(pa.bool_())),
        ("length", pa.int32()),  # tokens
        ("supervised", pa.int32()),  # labels that the loss sees: all but the first position's
        ("file", pa.int32()),  # number of the file among the sources
        ("line", pa.int32()),  # 1-based line the row starts on
        ("row", pa.int32()),  # number of the row among all sources; several rows may stand on one line
        ("turns", pa.int32()),  # of the row's conversation, up to the last answer that is learned; 0 of a document
        ("digest", pa.binary(16)),  # names the row's content
        ("truncated", pa.bool_()),
        ("cut", pa.int32()),  # tokens that were left out because the sample was too long
        ("cut_learned", pa.int32()),  # those of them that would have been learned
        ("num_chosen", pa.int32()),  # of a pair: tokens of the chosen sequence, which stands in front; else 0
        ("sketch", pa.binary(similarity.NUM_MINIMA)),  # for the search of near copies
    ]
)


class RawRow(NamedTuple):
    """A row as it was read."""

    file: int
    line: int
    value: dict[str, Any]


@dataclass(slots=True)
class Chunk:
    """Neighbouring rows.

    Args:
        first: number of the first row among all sources.
        rows: the rows.
        findings: what the reader has refused between them.
        position: how many bytes of the sources are read.
    """

    first: int
    rows: list[RawRow] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    position: int = 0


class _Parsed(NamedTuple):
    """A row that its format could read."""

    number: int  # among all sources
    raw: RawRow
    item: Item


@dataclass(slots=True)
class Done:
    """A chunk's samples, but for the sketches: those are made with threads, so not in a forked process."""

    columns: list[Any]
    pieces: npt.NDArray[np.uint64]
    offsets: npt.NDArray[np.uint64]
    row_of_sample: Int64s  # position among the rows that `pieces` has
    findings: list[Finding]

    def batch(self) -> Any:
        """The samples as a record batch of `SCHEMA`."""
        sketches = similarity.minima(self.pieces, self.offsets)[self.row_of_sample]
        return pa.record_batch([*self.columns, column(sketches)], schema=SCHEMA)


@final
@dataclass(frozen=True)
class Work:
    """What is done with every chunk; depends on nothing but the chunk."""

    files: tuple[Path, ...]
    format: Inputs
    encoder: Encoder

    def __call__(self, chunk: Chunk) -> Done:
        """Parse, judge and encode."""
        findings: list[Finding] = []
        rows = list(self._parsed(chunk, findings))
        items = [row.item for row in rows]
        encoded = self.encoder.encode(items, Problems())
        places = {id(item): i for i, item in enumerate(items)}
        row_of_sample = np.fromiter((places[id(each.item)] for each in encoded), np.int64, len(encoded))
        columns = _columns(encoded, rows, row_of_sample)
        supervised = numbers(columns[SCHEMA.get_field_index("supervised")])
        faults = itertools.chain(self._without_samples(rows, row_of_sample, supervised), self._judged(items))
        findings += [self._finding(rows[i].number, rows[i].raw, fault) for i, fault in faults]
        findings.sort(key=lambda finding: finding.row)
        pieces, offsets = similarity.pieces(judging.Texts(items, system=False))
        return Done(columns, pieces, offsets, row_of_sample, findings)

    def _parsed(self, chunk: Chunk, findings: list[Finding]) -> Iterator[_Parsed]:
        for number, raw in enumerate(chunk.rows, start=chunk.first):
            try:
                item = self.format.parse(raw.value, Origin(self.files[raw.file], raw.line))
            except UserError as error:
                faults = [Fault(kind_of(text, default="format"), text) for text in error.problems]
                findings += [self._finding(number, raw, fault) for fault in faults]
            else:
                yield _Parsed(number, raw, item)

    def _without_samples(
        self, rows: Sequence[_Parsed], row_of_sample: Int64s, supervised: npt.NDArray[np.int32]
    ) -> Iterator[tuple[int, Fault]]:
        """Rows that the encoder refuses, and rows of whose samples nothing is learned."""
        samples = np.bincount(row_of_sample, minlength=len(rows))
        learned = np.bincount(row_of_sample, weights=supervised, minlength=len(rows))
        for i in np.flatnonzero(samples == 0).tolist():
            yield from ((i, fault) for fault in self._why_not(rows[i].item))
        for i in np.flatnonzero((samples > 0) & (learned == 0)).tolist():
            yield i, Fault("nothing_learned", "no token of it is learned; give it an answer that is")

    def _why_not(self, item: Item) -> list[Fault]:
        try:
            self.encoder.encode([item])
        except UserError as error:
            return [Fault(kind_of(text, default="template"), text) for text in error.problems]
        return [Fault("nothing_learned", "no answer of it is learned; switch one on or remove the row")]

    def _judged(self, items: Sequence[Item]) -> Iterator[tuple[int, Fault]]:
        texts = judging.Texts(items, system=True)
        for rule in judging.rules():
            for i, text in rule.find(texts, controls=self.encoder.controls):
                yield i, Fault(rule.kind.name, text)

    def _finding(self, number: int, raw: RawRow, fault: Fault) -> Finding:
        place = f":{raw.line}: "
        text = fault.removeprefix(f"{self.files[raw.file]}{place}")
        value = raw.value if judging.kinds()[fault.kind].severity == "error" else None
        return Finding(fault.kind, raw.file, raw.line, number, place + text, value)


@final
class Identity:
    """Names the ids and labels of all samples in their order, whatever files, code and settings made them."""

    def __init__(self) -> None:
        self._hashers = [hashlib.sha256() for _ in range(3)]
        self._pairs = hashlib.sha256()
        self._is_paired = False

    def add(self, batch: Any) -> None:
        """Go on with the samples of a record batch of `SCHEMA`."""
        ids, learned = batch.column("input_ids").flatten(), batch.column("learned").flatten()
        values = numbers(batch.column("length")), numbers(ids), truths(learned)
        for hasher, each in zip(self._hashers, values, strict=True):
            hasher.update(each.data)
        chosen = numbers(batch.column("num_chosen"))
        self._pairs.update(chosen.data)
        self._is_paired = self._is_paired or bool(chosen.any())

    def name(self) -> str:
        """32 hex digits."""
        hashers = [*self._hashers, self._pairs] if self._is_paired else self._hashers
        return hashlib.sha256(b"".join(hasher.digest() for hasher in hashers)).hexdigest()[:32]


def _columns(encoded: Sequence[Encoded], rows: Sequence[_Parsed], row_of_sample: Int64s) -> list[Any]:
    """All columns of `SCHEMA` but the sketch; ``rows`` are those that could be parsed."""
    lengths = np.fromiter((len(each.input_ids) for each in encoded), np.int32, len(encoded))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    ids = np.fromiter(itertools.chain.from_iterable(each.input_ids for each in encoded), np.int32, offsets[-1])
    learned = np.fromiter(itertools.chain.from_iterable(each.learned for each in encoded), np.bool_, offsets[-1])
    origins = np.array([(row.raw.file, row.raw.line, row.number) for row in rows], np.int32).reshape(-1, 3)
    digests = np.frombuffer(b"".join([digest(row.item) for row in rows]), np.uint8).reshape(-1, 16)
    return [
        lists(offsets, ids),
        lists(offsets, learned),
        column(lengths),
        column(supervised(learned, offsets)),
        *(column(place[row_of_sample]) for place in origins.T),
        column(np.fromiter((each.turns for each in encoded), np.int32, len(encoded))),
        column(digests[row_of_sample]),
        column(np.fromiter((each.truncated for each in encoded), np.bool_, len(encoded))),
        column(np.fromiter((each.cut for each in encoded), np.int32, len(encoded))),
        column(np.fromiter((each.cut_learned for each in encoded), np.int32, len(encoded))),
        column(np.fromiter((each.num_chosen for each in encoded), np.int32, len(encoded))),
    ]


def supervised(learned: npt.NDArray[np.bool_], offsets: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Labels of each sample that the loss sees: those learned, but for the first position's. Shape (samples,)."""
    before = np.concatenate([[0], np.cumsum(learned, dtype=np.int64)])
    starts, ends = offsets[:-1], offsets[1:]
    first = before[np.minimum(starts + 1, ends)] - before[starts]
    return np.asarray(before[ends] - before[starts] - first, dtype=np.int32)
