"""Official tokenizer files on Hugging Face's hub. (What is of another kind, transformers fetches itself.)"""

from __future__ import annotations

from pathlib import Path

from glm_lightning.tokenizers.release import FILES


def fetch(name: str, *, revision: str | None) -> Path | None:
    """The folder that the tokenizer files of a model are downloaded into, without code and weights.

    None if the hub does not give them: whoever asks for the tokenizer next says why.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(FILES)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError):
        return None
