"""Checkpoints without pickle: a folder of safetensors and JSON, written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from glm_lightning.files import atomic_folder, read_json, recover, write_json
from glm_lightning.types import UserError

TRAINED, TENSORS, STATE = "trained.safetensors", "optimizer.safetensors", "state.json"
FORMAT = 1
LAST, PREVIOUS, BEST = "last", "previous", "best"
"""Names of a run's checkpoints: the newest, the one before it, and the one with the lowest validation loss."""


@final
class SafeCheckpoints(CheckpointIO):
    """Reads and writes Lightning's checkpoint dictionaries as folders.

    ``trained.safetensors`` holds the trained parameters by name, ``optimizer.safetensors`` all other tensors,
    ``state.json`` the rest (progress, schedules, callbacks) with tensors replaced by references.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write ``checkpoint`` to the folder ``path``, atomically.

        Raises:
            UserError: the disk is full or cannot be written; what was in ``path`` before is still there.
        """
        rest = {key: value for key, value in checkpoint.items() if key != "state_dict"}
        tensors: dict[str, Tensor] = {}
        state = _pack(rest, "", tensors, {})
        parts = {TRAINED: _plain(checkpoint["state_dict"]), TENSORS: _plain(tensors)}
        try:
            with atomic_folder(Path(path)) as folder:
                for name, part in parts.items():
                    save_file(part, folder / name)
                write_json(folder / STATE, {"format": FORMAT, "state": state})
        except (OSError, SafetensorError) as error:
            needed = sum(tensor.nbytes for part in parts.values() for tensor in part.values())
            raise UserError(_unwritable(Path(path), needed, error)) from error

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = None) -> Any:
        """Read the folder ``path``.

        Raises:
            UserError: it is no checkpoint of this project, or is torn.
        """
        folder = Path(path)
        try:
            stored = read_json(folder / STATE)
            if stored["format"] != FORMAT:
                raise UserError(f"{folder}: written in format {stored['format']}, this release reads {FORMAT}")
            tensors = load_file(folder / TENSORS)
            checkpoint = _unpack(stored["state"], tensors)
            return checkpoint | {"state_dict": load_file(folder / TRAINED)}
        except _TORN as error:
            raise UserError(_torn(folder, error)) from error

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete the folder ``path``."""
        shutil.rmtree(path, ignore_errors=True)


def newest_whole(folder: Path, *, base: str, method: str) -> tuple[Path | None, list[str]]:
    """The checkpoint in ``folder`` to go on from, and what is wrong with those that were passed over.

    Args:
        folder: holds a run's checkpoints.
        base: fingerprint of the base network.
        method: name of the method's class.

    Raises:
        UserError: there are checkpoints, and none of them will do.
    """
    problems: list[str] = []
    paths = [path for name in (LAST, PREVIOUS, BEST) if (path := folder / name).is_dir()]
    for path in paths:
        if (problem := _problem(path, base=base, method=method)) is None:
            return path, problems
        problems.append(problem)
    if problems:
        raise UserError(problems)
    return None, []


def settle(folder: Path) -> None:
    """Put right what a crash has left among the checkpoints in ``folder``; no other process may be writing there."""
    for name in (LAST, PREVIOUS, BEST):
        recover(folder / name)
    for part in folder.glob(".*.part"):
        shutil.rmtree(part, ignore_errors=True)


def set_aside(path: Path, kept: Path) -> None:
    """Keep the checkpoint ``path`` as ``kept``, too; both share the bytes on disk, where the file system can."""
    with atomic_folder(kept) as folder:
        for file in path.iterdir():
            _link(file, folder / file.name)


def _link(file: Path, other: Path) -> None:
    try:
        os.link(file, other)
    except OSError:
        shutil.copyfile(file, other)


_TORN = (OSError, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, SafetensorError)
"""What reading half a checkpoint ends with."""


def _torn(folder: Path, error: Exception) -> str:
    return f"{folder}: not a whole checkpoint of glm_lightning ({error!r}); resume another run"


def _problem(folder: Path, *, base: str, method: str) -> str | None:
    """Why a run cannot go on from a checkpoint; its tensors' places are looked at, and not their values."""
    try:
        stored = read_json(folder / STATE)
        if stored["format"] != FORMAT:
            return f"{folder}: written in format {stored['format']}, this release reads {FORMAT}"
        names: set[str] = set()
        for file in (TRAINED, TENSORS):
            # refuses a file that is shorter or longer than its header says
            with safe_open(folder / file, framework="pt") as tensors:
                names = set(tensors.keys())
        state = _unpack(stored["state"], dict.fromkeys(names))
        made_on, made_by = state["base"], state["method"]
    except _TORN as error:
        return _torn(folder, error)
    if made_on != base:
        return (
            f"{folder}: made on base {made_on}, but model.path holds {base}; "
            "give the base model that the run was started with"
        )
    return None if made_by == method else f"{folder}: made by the method {made_by}, but the run's is {method}"


def _unwritable(path: Path, needed: int, error: Exception) -> str:
    free = shutil.disk_usage(path.parent).free / 2**20
    kept = "the checkpoint before it is whole" if path.is_dir() else "there is no checkpoint before it"
    return (
        f"{path}: cannot be written ({error}): it takes {needed / 2**20:,.1f} MiB, "
        f"and the disk of {path.parent} has {free:,.1f} MiB free; {kept}; make room and resume the run"
    )


def load_trained(path: Path) -> dict[str, Tensor]:
    """The trained parameters of the checkpoint folder ``path``, by name."""
    return dict(load_file(path / TRAINED))


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}


def _pack(value: Any, name: str, tensors: dict[str, Tensor], names: dict[Any, str]) -> Any:
    """``value`` as JSON: what JSON lacks becomes an object with one ``!kind`` key.

    A tensor that several places share, such as the code book of an 8-bit optimizer, is written once, under its first
    name of ``names``.
    """
    if isinstance(value, Tensor):
        shared = names.setdefault((value.data_ptr(), value.shape, value.stride(), value.dtype), name)
        tensors[shared] = value
        return {"!tensor": shared}
    if isinstance(value, dict):
        pairs = [[_key(key), _pack(item, f"{name}/{key}", tensors, names)] for key, item in value.items()]
        return {"!dict": pairs}
    if isinstance(value, tuple):
        return {"!tuple": [_pack(item, f"{name}/{index}", tensors, names) for index, item in enumerate(value)]}
    if isinstance(value, list):
        return [_pack(item, f"{name}/{index}", tensors, names) for index, item in enumerate(value)]
    assert value is None or isinstance(value, bool | int | float | str), f"{name}: {type(value)} cannot be stored"
    return value


def _key(key: Any) -> str | int:
    assert isinstance(key, str | int), f"{key!r} cannot be a key"
    return key


def _unpack(value: Any, tensors: Mapping[str, Any]) -> Any:
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    if isinstance(value, dict):
        (kind, content), *_ = value.items()
        if kind == "!tensor":
            return tensors[content]
        items = [_unpack(item, tensors) for item in content]
        return tuple(items) if kind == "!tuple" else dict(items)
    return value
