"""Files of a model on a hub. (Where a whole network is loaded, transformers fetches from Hugging Face's itself.)"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from glm_lightning.types import UserError

_SMALL = ["*.json", "*.model", "*.txt", "*.jinja"]
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
"""The better first; the other is fetched where there is none of it."""


def from_modelscope(name: str, *, revision: str | None, weights: bool) -> Path:
    """The folder that a model is downloaded into: configuration and tokenizer, and the weights if they are asked for.

    Code in it is neither fetched nor run.

    Raises:
        UserError: the package ``modelscope`` is not installed, or the model cannot be had.
    """
    try:
        from modelscope import snapshot_download
    except ImportError:
        raise UserError(
            "model.hub is 'modelscope': needs the package modelscope, which is not installed: pip install modelscope"
        ) from None
    if not weights:
        return _fetched(snapshot_download, name, revision=revision, patterns=_SMALL)
    for pattern in _WEIGHTS:
        folder = _fetched(snapshot_download, name, revision=revision, patterns=[*_SMALL, pattern])
        if any(folder.glob(pattern)):
            break
    return folder


def from_huggingface(name: str, *, revision: str | None) -> Path:
    """The folder in Hugging Face's cache that holds the weights of a model; what is there is not fetched again.

    Raises:
        UserError: the model cannot be had.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        for pattern in _WEIGHTS:
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=[*_SMALL, pattern]))
            if any(folder.glob(pattern)):
                break
    except (OSError, ValueError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise UserError(f"model.path is {name!r}: the hub does not give its weights: {error}") from error
    return folder


def _fetched(download: Callable[..., str], name: str, *, revision: str | None, patterns: list[str]) -> Path:
    try:
        return Path(download(name, revision=revision, allow_patterns=patterns))
    except Exception as error:
        # its hub raises errors of its own, of requests and of the file system
        raise UserError(f"model.path is {name!r}: ModelScope does not give it: {error}") from error
