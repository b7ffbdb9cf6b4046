"""The encoded rows of files on disk: written once, found again under everything they depend on."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from glm_lightning.data.encoding import Encoded, Encoder, digest
from glm_lightning.data.formats import Format
from glm_lightning.data.reading import Problems, read
from glm_lightning.files import atomic_folder, fingerprint, lock, write_json
from glm_lightning.files import digest as name_of
from glm_lightning.types import Conversation, Origin, UserError

_CHUNK = 1000
_QUIET_SECONDS = 2.0

ARROW = "samples.arrow"
COUNTS = "counts.json"

SCHEMA = pa.schema(
    [
        ("input_ids", pa.list_(pa.int32())),
        ("learned", pa.list_(pa.bool_())),
        ("file", pa.int32()),  # number of the file among the sources
        ("line", pa.int32()),  # 1-based line the row starts on
        ("row", pa.int32()),  # number of the row among all sources; several rows may stand on one line
        ("turns", pa.int32()),  # of the row's conversation, up to the last answer that is learned
        ("digest", pa.binary(16)),  # names the conversation's content
        ("truncated", pa.bool_()),
    ]
)


def default_folder() -> Path:
    """Where encoded data lies unless yaml says otherwise: $GLM_LIGHTNING_CACHE, else ~/.cache/glm_lightning."""
    return Path(os.environ.get("GLM_LIGHTNING_CACHE", "~/.cache/glm_lightning")).expanduser()


def build(files: Sequence[Path], *, format: Format, encoder: Encoder, folder: Path) -> tuple[Path, bool]:
    """The folder with the encoded rows of ``files``, made if it is not there, and whether it was there.

    Of several processes that want the same, one makes it and the others wait.

    Raises:
        UserError: everything that is wrong with the rows.
    """
    key = name_of([fingerprint(file) for file in files], format.fingerprint, encoder.fingerprints)
    target = folder / key
    if (target / COUNTS).is_file():
        return target, True
    with lock(folder / f"{key}.lock"):
        if (target / COUNTS).is_file():
            return target, True
        with atomic_folder(target) as part:
            _write(part, files, format, encoder)
    return target, False


def _write(folder: Path, files: Sequence[Path], format: Format, encoder: Encoder) -> None:
    problems = Problems()
    counts = {"rows": 0, "samples": 0, "tokens": 0, "supervised": 0, "truncated": 0}
    with pa.OSFile(str(folder / ARROW), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        for conversations in _chunks(_conversations(files, format, problems)):
            if problems:  # the rest is only read, for its problems
                continue
            encoded = encoder.encode(conversations, problems)
            rows = {id(conversation): row for row, conversation in enumerate(conversations, counts["rows"])}
            writer.write_batch(_record_batch(encoded, files, rows))
            counts["rows"] += len(conversations)
            counts["samples"] += len(encoded)
            counts["tokens"] += sum(len(each.input_ids) for each in encoded)
            counts["supervised"] += sum(sum(each.learned[1:]) for each in encoded)
            counts["truncated"] += sum(each.truncated for each in encoded)
    if problems:
        raise UserError(problems.texts)
    write_json(folder / COUNTS, counts)


def _conversations(files: Sequence[Path], format: Format, problems: Problems) -> Iterator[Conversation]:
    sizes = [file.stat().st_size for file in files]
    total = max(sum(sizes), 1)
    with _ProgressBar() as bar:
        for number, file in enumerate(files):
            before, size = sum(sizes[:number]), sizes[number]
            for row in read(file, problems):
                bar.show((before + row.done * size) / total)
                try:
                    yield format.parse(row.value, Origin(file, row.line))
                except UserError as error:
                    problems.add(file, *error.problems)


def _chunks(conversations: Iterator[Conversation]) -> Iterator[list[Conversation]]:
    while chunk := list(itertools.islice(conversations, _CHUNK)):
        yield chunk


def _record_batch(encoded: Sequence[Encoded], files: Sequence[Path], rows: Mapping[int, int]) -> Any:
    origins = [each.conversation.origin for each in encoded]
    numbers = {file: number for number, file in enumerate(files)}
    return pa.record_batch(
        [
            pa.array([each.input_ids for each in encoded], SCHEMA.field("input_ids").type),
            pa.array([each.learned for each in encoded], SCHEMA.field("learned").type),
            pa.array([numbers[origin.path] for origin in origins if origin], pa.int32()),
            pa.array([origin.line for origin in origins if origin], pa.int32()),
            pa.array([rows[id(each.conversation)] for each in encoded], pa.int32()),
            pa.array([each.turns for each in encoded], pa.int32()),
            pa.array([digest(each.conversation) for each in encoded], pa.binary(16)),
            pa.array([each.truncated for each in encoded], pa.bool_()),
        ],
        schema=SCHEMA,
    )


class _ProgressBar:
    """A bar on stderr that appears once the work has taken a while."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> Self:
        return self

    def show(self, share: float) -> None:
        """Move to ``share`` (0 to 1) of the work."""
        if self._bar is not None:
            self._bar.update(self._task, completed=share)
        elif time.monotonic() - self._begun > _QUIET_SECONDS:
            columns = TextColumn("encoding"), BarColumn(), TextColumn("{task.percentage:.0f}%"), TimeRemainingColumn()
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("encoding", total=1.0)
            self._bar.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
