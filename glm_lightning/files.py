"""What every room does with a disk: atomic writes, fingerprints, locks."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BLOCK = 1 << 16
_SAMPLED_BLOCKS = 256


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 so that ``path`` holds either the old text or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with part.open("w", encoding="utf-8", newline="\n") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically, with Chinese left readable."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file in UTF-8."""
    return json.loads(path.read_text(encoding="utf-8"))


@contextlib.contextmanager
def atomic_folder(path: Path, *, replace: bool = True) -> Iterator[Path]:
    """Yield an empty folder that becomes ``path`` when the block ends without an exception.

    A folder that is already there is replaced; after a crash either the old or the new one is there, or the old one
    set aside, which `recover` puts back; never a half-written one. What a crash left of the new one is removed by the
    next that writes ``path``.

    Raises:
        FileExistsError: ``replace`` is false, and it is there in the end, or another process is writing it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    old = path.with_name(f".{path.name}.old")
    name = re.compile(rf"\.{re.escape(path.name)}\.\d+\.part")
    others = [part for part in path.parent.iterdir() if name.fullmatch(part.name) and not _removed(part)]
    if others and not replace:
        raise FileExistsError(f"{path}: another process is writing it, into {others[0].name}")
    with _held_folder(path) as part:
        yield part
        for file in part.rglob("*"):
            if file.is_file():  # safetensors' are their owner's alone, whatever the umask says
                file.chmod(part.stat().st_mode & 0o666)
            _fsync(file)
        if replace and path.exists():
            shutil.rmtree(old, ignore_errors=True)
            path.rename(old)
        try:
            part.rename(path)
        except OSError as error:
            if not path.exists():
                raise
            raise FileExistsError(f"{path}: has come to exist meanwhile; it is left as it is") from error
        _fsync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _held_folder(path: Path) -> Iterator[Path]:
    """A new folder beside ``path``, locked by this process, which is gone in the end unless it was renamed."""
    import fcntl

    new = path.with_name(f".{path.name}.{os.getpid()}")
    part = path.with_name(f"{new.name}.part")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    with _opened(new) as handle:
        with contextlib.suppress(OSError):  # a disk without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        new.rename(part)  # locked already whenever it is seen under this name
        try:
            yield part
        finally:
            shutil.rmtree(part, ignore_errors=True)


def _removed(part: Path) -> bool:
    """Remove what a dead process left of a folder; whether that was so. The system frees the locks of the dead."""
    import fcntl

    try:
        with _opened(part) as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(part, ignore_errors=True)
    except OSError:
        return not part.exists()
    return True


def recover(path: Path) -> None:
    """Put back what `atomic_folder` had set aside when a crash came between its two renames."""
    old = path.with_name(f".{path.name}.old")
    if not path.exists() and old.exists():
        old.rename(path)


def _fsync(path: Path) -> None:
    with _opened(path) as handle:
        os.fsync(handle)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    """The descriptor of a file or a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        yield handle
    finally:
        os.close(handle)


def digest(*parts: Any) -> str:
    """A short stable name (32 hex digits of SHA-256) for JSON-like values."""
    text = json.dumps(parts, ensure_ascii=False, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def fingerprint(path: Path) -> str:
    """SHA-256 (32 hex digits) of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:32]


def sampled_fingerprint(path: Path) -> str:
    """A fingerprint of a large file from its size and 256 blocks of 64 KiB spread evenly over it.

    A file of up to 16 MiB is read whole. Enough to tell two checkpoints apart without reading 18 GB.
    """
    size = path.stat().st_size
    hasher = hashlib.sha256(str(size).encode())
    stride = max(_BLOCK, size // _SAMPLED_BLOCKS)
    with path.open("rb") as stream:
        for offset in range(0, max(size, 1), stride):
            stream.seek(offset)
            hasher.update(stream.read(_BLOCK))
    return hasher.hexdigest()[:32]


@contextlib.contextmanager
def lock(path: Path, *, timeout: float = 3600.0) -> Iterator[None]:
    """Hold an exclusive lock on ``path`` between processes of one machine; the system frees it if the holder dies.

    Raises:
        TimeoutError: another process held it for ``timeout`` seconds.
    """
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + timeout
    with path.open("a+", encoding="utf-8") as stream:
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{path}: another process has held this lock for {timeout:.0f} s") from None
                time.sleep(0.1)
        yield
