"""Files of a model on ModelScope. (What lies on Hugging Face's hub, transformers fetches itself.)"""

from __future__ import annotations

from pathlib import Path

from glm_lightning.types import UserError

_SMALL = ["*.json", "*.model", "*.txt", "*.jinja"]
_WEIGHTS = ["*.safetensors", "*.bin"]


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
    try:
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=[*_SMALL, *(_WEIGHTS if weights else [])])
        )
    except Exception as error:
        # its hub raises errors of its own, of requests and of the file system
        raise UserError(f"model.path is {name!r}: ModelScope does not give it: {error}") from error
