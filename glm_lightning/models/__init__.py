"""Get a network: native transformers classes only, never remote code."""

from glm_lightning.models.source import Source

__all__ = ["Source"]
