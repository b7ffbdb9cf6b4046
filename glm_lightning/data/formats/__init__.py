"""Kinds of rows: one file per format, chosen by `_target_` in yaml."""

from glm_lightning.data.formats.base import Format

__all__ = ["Format"]
