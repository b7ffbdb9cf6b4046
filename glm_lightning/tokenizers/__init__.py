"""Tokenizer files of every kind behind one interface."""

from __future__ import annotations

from pathlib import Path

from glm_lightning.tokenizers.base import Tokenizer
from glm_lightning.types import UserError

__all__ = ["Tokenizer", "load"]

_FILES = ("tokenizer.json", "tokenizer_config.json")


def load(path: str | Path, *, revision: str | None = None) -> Tokenizer:
    """Read the tokenizer of a model folder, or of a model by its Hugging Face name; no code of the folder is run.

    ``revision`` is a branch, tag or commit on the hub.

    Raises:
        UserError: there is no tokenizer, or none that can be read without running its code.
    """
    folder = Path(path)
    if folder.is_dir() and not any((folder / name).is_file() for name in _FILES):
        raise UserError(
            f"tokenizer: no tokenizer in {folder}: none of {', '.join(_FILES)} is there. "
            "Copy the tokenizer files of the model into it, or give the folder that holds them"
        )
    # transformers takes seconds to import: only where a tokenizer is really read
    from glm_lightning.tokenizers import huggingface

    return huggingface.load(path, revision=revision)
