"""Checkpoints without pickle: a folder of safetensors and JSON, written whole or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, final

from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from glm_lightning.files import atomic_folder, read_json, write_json
from glm_lightning.types import UserError

TRAINED, TENSORS, STATE = "trained.safetensors", "optimizer.safetensors", "state.json"
FORMAT = 1


@final
class SafeCheckpoints(CheckpointIO):
    """Reads and writes Lightning's checkpoint dictionaries as folders.

    ``trained.safetensors`` holds the trained parameters by name, ``optimizer.safetensors`` all other tensors,
    ``state.json`` the rest (progress, schedules, callbacks) with tensors replaced by references.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write ``checkpoint`` to the folder ``path``, atomically."""
        rest = {key: value for key, value in checkpoint.items() if key != "state_dict"}
        tensors: dict[str, Tensor] = {}
        state = _pack(rest, "", tensors, {})
        with atomic_folder(Path(path)) as folder:
            save_file(_plain(checkpoint["state_dict"]), folder / TRAINED)
            save_file(_plain(tensors), folder / TENSORS)
            write_json(folder / STATE, {"format": FORMAT, "state": state})

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
        except (OSError, json.JSONDecodeError, KeyError, SafetensorError) as error:
            raise UserError(
                f"{folder}: not a whole checkpoint of glm_lightning ({error!r}); resume another run"
            ) from error

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete the folder ``path``."""
        shutil.rmtree(path, ignore_errors=True)


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


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    if isinstance(value, dict):
        (kind, content), *_ = value.items()
        if kind == "!tensor":
            return tensors[content]
        items = [_unpack(item, tensors) for item in content]
        return tuple(items) if kind == "!tuple" else dict(items)
    return value
