"""Kinds of rows: one file per format, chosen by `_target_` or by its name in yaml, or recognised from the rows."""

from glm_lightning.data.formats.base import Format, RowKind

__all__ = ["Format", "RowKind"]
