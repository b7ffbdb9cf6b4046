"""Weights on disk as they come: files of limited size, and an index over them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import final

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from glm_lightning.files import write_json
from glm_lightning.types import UserError

GB = 10**9
DEFAULT_SHARD = 4.0 * GB
"""Large enough that a model has few files, and small beside the memory that it runs in."""


@final
class Shards:
    """Writes safetensors files of up to ``limit`` bytes (or one tensor) into ``folder``; it holds what one file holds.

    Names are given to the files in the end, when their number is known.
    """

    def __init__(self, folder: Path, *, limit: float) -> None:
        self._folder, self._limit = folder, limit
        self._held: dict[str, Tensor] = {}
        self._files: dict[str, int] = {}
        self._count = self._size = self._total = 0

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """Take tensors in; they must not change any more."""
        for name, tensor in tensors.items():
            assert name not in self._files, f"{name} is written twice"
            if self._held and self._size + tensor.nbytes > self._limit:
                self._write()
            self._held[name] = tensor.contiguous()
            self._files[name] = self._count
            self._size += tensor.nbytes
            self._total += tensor.nbytes

    def finish(self) -> None:
        """Write what is held, and the index if there are several files."""
        self._write()
        if self._count == 1:
            self._part(0).rename(self._folder / "model.safetensors")
            return
        names = [f"model-{i + 1:05}-of-{self._count:05}.safetensors" for i in range(self._count)]
        for i, name in enumerate(names):
            self._part(i).rename(self._folder / name)
        where = {name: names[i] for name, i in sorted(self._files.items())}
        write_json(
            self._folder / "model.safetensors.index.json",
            {"metadata": {"total_size": self._total}, "weight_map": where},
        )

    def _write(self) -> None:
        path = self._part(self._count)
        try:
            save_file(self._held, path, metadata={"format": "pt"})
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path.parent}: {error}{_room(self._folder, error)}") from error
        self._held, self._size = {}, 0
        self._count += 1

    def _part(self, number: int) -> Path:
        return self._folder / f"part-{number}.safetensors"


def check_room(folder: Path, *, needed: int) -> None:
    """Raise `UserError` if the disk that ``folder`` will lie on has less than ``needed`` bytes left."""
    there = next(parent for parent in folder.absolute().parents if parent.is_dir())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise UserError(
            f"{folder}: needs {needed / GB:.1f} GB, and its disk has {free / GB:.1f} GB left; make room, or give "
            "another folder"
        )


def shard_bytes(text: str) -> float:
    """Bytes of a size such as ``500MB`` or ``2GB``.

    Raises:
        UserError: it is none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(MB|GB)", text.strip(), re.IGNORECASE)
    if found is None or not float(found[1]):
        raise UserError(f"--shard-size is {text!r}: must be a number and MB or GB, such as 2GB")
    return float(found[1]) * (GB if found[2].upper() == "GB" else GB / 1000)


def _room(folder: Path, error: Exception) -> str:
    full = "No space left" in str(error)
    free = shutil.disk_usage(folder).free
    return f" ({free / GB:.1f} GB are left); make room, or give a folder on another disk" if full else ""
