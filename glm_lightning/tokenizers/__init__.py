"""Tokenizer files of every kind behind one interface."""

from __future__ import annotations

from pathlib import Path

from glm_lightning.tokenizers import release
from glm_lightning.tokenizers.base import Tokenizer
from glm_lightning.tokenizers.belonging import check
from glm_lightning.tokenizers.hub import fetch
from glm_lightning.tokenizers.official import OfficialTokenizer
from glm_lightning.types import UserError

__all__ = ["Tokenizer", "check", "load"]

_FILES = ("tokenizer.json", release.CONFIG)


def load(path: str | Path, *, revision: str | None = None) -> Tokenizer:
    """Read the tokenizer of a model folder, or of a model by its Hugging Face name; no code of the folder is run.

    The official files of ChatGLM-6B, ChatGLM2, ChatGLM3 and GLM-4-9B are read as they are. Where one lies beside a
    tokenizer.json that was made from it, as `Tokenizer.save` leaves them, it wins; else a tokenizer.json does.

    ``revision`` is a branch, tag or commit on the hub.

    Raises:
        UserError: there is no tokenizer, or none that can be read without running its code.
    """
    folder = Path(path).expanduser()
    fetched = folder if folder.is_dir() else fetch(str(path), revision=revision)
    found = release.find(fetched) if fetched else None
    if found is not None:
        return OfficialTokenizer(found)
    if folder.is_dir() and not any((folder / name).is_file() for name in _FILES):
        raise UserError(
            f"tokenizer: no tokenizer in {folder}: none of {', '.join(_FILES)} is there, and no official "
            "ice_text.model or tokenizer.model. Copy the tokenizer files of the model into it, or give the folder that "
            "holds them"
        )
    # transformers takes seconds to import: only where a tokenizer is really read by it
    from glm_lightning.tokenizers import huggingface

    return huggingface.load(folder if folder.is_dir() else path, revision=revision)
