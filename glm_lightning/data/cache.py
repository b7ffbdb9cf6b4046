"""The encoded and judged rows of files on disk: written once, found again under everything they depend on."""

from __future__ import annotations

import contextlib
import inspect
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, cast

import numpy as np
import pyarrow as pa

from glm_lightning.data import columns, encoding, findings, judging, parallel, rows, truncation
from glm_lightning.data.columns import numbers, truths
from glm_lightning.data.encoding import Encoder
from glm_lightning.data.findings import Finding
from glm_lightning.data.inputs import Inputs
from glm_lightning.data.judging.kinds import FILE, OF_ROWS, kind_of
from glm_lightning.data.progress import Bar, say
from glm_lightning.data.reading import Problems
from glm_lightning.data.rows import SCHEMA, Chunk, Done, Identity, RawRow, Work
from glm_lightning.files import atomic_folder, digest, fingerprint, lock, read_json, write_json
from glm_lightning.types import UserError

T = TypeVar("T")

_CHUNK_ROWS = 1000
_CHUNK_BYTES = 1 << 22
_LINES_KEPT = 1_000_000  # of refused ones in a row
_SETTLED_SECONDS = 2.0
_QUIET_SECONDS = 2.0  # of waiting for another process before it is told
_LONGEST_WAIT = 86_400.0  # seconds for another process to encode the same
_LINE = re.compile(r":(\d+): ")

_ALWAYS_BAD = {kind.name for kind in OF_ROWS}

ARROW = "samples.arrow"
COUNTS = "counts.json"
FINDINGS = "findings.arrow"


def default_folder() -> Path:
    """Where encoded data lies unless yaml says otherwise: $GLM_LIGHTNING_CACHE, else ~/.cache/glm_lightning."""
    return Path(os.environ.get("GLM_LIGHTNING_CACHE", "~/.cache/glm_lightning")).expanduser()


def build(
    files: Sequence[Path], *, format: Inputs, encoder: Encoder, folder: Path, processes: int | None = None
) -> tuple[Path, bool]:
    """The folder with the encoded rows of ``files``, made if it is not there, and whether it was there.

    Of several processes that want the same, one makes it and the others wait. ``processes`` encode at the same time,
    None: as many as there are cores, if there is much to do; the result is the same to the byte.

    Raises:
        UserError: a file cannot be read to its end. What is wrong with single rows is among the findings.
    """
    key = key_of(files, format=format, encoder=encoder, folder=folder)
    target = folder / key
    if (target / COUNTS).is_file():
        return target, True
    with turn(folder / f"{key}.lock"):
        if (target / COUNTS).is_file():
            return target, True
        _sweep(folder)
        work = Work(files=tuple(files), format=format, encoder=encoder)
        with atomic_folder(target) as part:
            _write(part, work, processes)
    return target, False


@contextlib.contextmanager
def turn(path: Path) -> Iterator[None]:
    """Hold a lock; who has to wait is told for whom."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock(path, timeout=_QUIET_SECONDS))
        except TimeoutError:
            holder = path.read_text(encoding="utf-8") or "another process"
            say(f"data: waits for {holder}, which encodes the same rows (its lock: {path})")
            stack.enter_context(lock(path, timeout=_LONGEST_WAIT))
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield


def _sweep(folder: Path) -> None:
    """Remove what encodings that were killed have left."""
    for part in folder.glob(".*.part"):
        if part.is_dir() and time.time() - part.stat().st_mtime > _LONGEST_WAIT:
            shutil.rmtree(part, ignore_errors=True)


def key_of(files: Sequence[Path], *, format: Inputs, encoder: Encoder, folder: Path) -> str:
    """Names the encoding by everything it depends on: the bytes of the files, the format, tokenizer, template, code."""
    contents = [remembered_fingerprint(file, folder=folder) for file in files]
    return digest(contents, format.fingerprint, encoder.fingerprints, _version())


def remembered_fingerprint(path: Path, *, folder: Path) -> str:
    """SHA-256 of a file's bytes, read again only if size, times or inode have changed since the last time.

    A file that was written within the last two seconds is not remembered, for it may change again within one tick of
    the file system's clock.
    """
    stat = path.stat()
    now = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev]
    memory = folder / "fingerprints" / f"{digest(str(path.resolve()))}.json"
    if memory.is_file():
        kept = read_json(memory)
        if kept["stat"] == now:
            return str(kept["sha256"])
    sha256 = fingerprint(path)
    if time.time() - max(stat.st_mtime, stat.st_ctime) > _SETTLED_SECONDS:
        with contextlib.suppress(OSError):  # a folder of others may hold all the rows, and can still be read
            write_json(memory, {"path": str(path), "stat": now, "sha256": sha256})
    return sha256


def _version() -> list[str]:
    """Changes with the code that decides what is written here."""
    modules = [
        rows,
        columns,
        findings,
        encoding,
        truncation,
        judging.base,
        judging.similarity,
        *(inspect.getmodule(type(rule)) for rule in judging.rules()),
    ]
    return code_of(*filter(None, modules))


def code_of(*modules: ModuleType) -> list[str]:
    """Changes with the code of some modules."""
    return [fingerprint(Path(inspect.getfile(module))) for module in modules]


def remembered(what: str, decides: Any, compute: Callable[[], T], *, folder: Path) -> T:
    """What ``compute`` gives, a plain value; found again in ``folder`` under all that ``decides`` it."""
    file = folder / f"{what}-{digest(decides)}.json"
    if file.is_file():
        return cast(T, read_json(file))
    value = compute()
    with contextlib.suppress(OSError):  # a folder of others may hold all the rows, and can still be read
        write_json(file, value)
    return value


def _write(folder: Path, work: Work, processes: int | None) -> None:
    counts = dict.fromkeys(("rows", "refused", "samples", "tokens", "supervised", "truncated"), 0)
    size = sum(file.stat().st_size for file in work.files)
    problems, broken, identity = Problems(), False, Identity()
    with (
        pa.OSFile(str(folder / ARROW), "wb") as sink,
        pa.ipc.new_file(sink, SCHEMA) as writer,
        pa.OSFile(str(folder / FINDINGS), "wb") as told,
        pa.ipc.new_file(told, findings.SCHEMA) as teller,
        Bar("encoding", total=size) as bar,
    ):
        chosen = parallel.choose(processes, size=size)
        for chunk, done in parallel.ordered(work, _chunks(work.files, work.format), processes=chosen):
            batch = done.batch()
            writer.write_batch(batch)
            identity.add(batch)
            _count(counts, batch, chunk, done)
            found = sorted([*chunk.findings, *done.findings], key=lambda each: (each.file, each.line))
            teller.write_batch(findings.batch(found))
            for finding in found:
                if finding.kind in _ALWAYS_BAD:
                    problems.add(work.files[finding.file], f"{work.files[finding.file]}{finding.text}")
                    broken = broken or finding.kind == FILE
            bar.show(chunk.position)
    if broken:
        raise UserError(problems.texts)
    write_json(folder / COUNTS, counts | {"identity": identity.name()})


def _count(counts: dict[str, int], batch: Any, chunk: Chunk, done: Done) -> None:
    with_samples = len(np.unique(numbers(batch.column("row"))))
    refused_lines = sum(finding.kind != FILE for finding in chunk.findings)
    counts["rows"] += len(chunk.rows) + refused_lines
    counts["refused"] += len(chunk.rows) - with_samples + refused_lines
    counts["samples"] += batch.num_rows
    counts["tokens"] += int(numbers(batch.column("length")).sum())
    counts["supervised"] += int(numbers(batch.column("supervised")).sum())
    counts["truncated"] += int(truths(batch.column("truncated")).sum())


def _chunks(files: Sequence[Path], format: Inputs) -> Iterator[Chunk]:
    """The rows of all files, a thousand or some megabytes at a time, with what the reader refuses between them."""
    chunk, before = Chunk(first=0), 0
    for number, file in enumerate(files):
        problems, size = Problems(limit=_LINES_KEPT), file.stat().st_size
        begun = before
        for row in format.read(file, problems):
            chunk.rows.append(RawRow(number, row.line, row.value))
            chunk.findings += _refused(problems, number, file)
            position = before + int(row.done * size)
            if len(chunk.rows) >= _CHUNK_ROWS or position - begun >= _CHUNK_BYTES:
                chunk.position = begun = position
                yield chunk
                chunk = Chunk(first=chunk.first + len(chunk.rows))
        chunk.findings += _refused(problems, number, file)
        before += size
    chunk.position = before
    if chunk.rows or chunk.findings:
        yield chunk


def _refused(problems: Problems, number: int, file: Path) -> list[Finding]:
    """What the reader has refused since the last time: lines, or the whole file where a problem names no line."""
    found = []
    for problem in problems.take():
        text = problem.removeprefix(str(file))
        line = _LINE.match(text)
        kind = kind_of(problem, default="syntax" if line else FILE)
        found.append(Finding(kind, number, int(line[1]) if line else 0, -1, text))
    return found
