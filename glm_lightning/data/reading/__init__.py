"""Files to rows: one file per kind of container; every fault with its place."""

from glm_lightning.data.reading.base import Problems, Row
from glm_lightning.data.reading.files import read

__all__ = ["Problems", "Row", "read"]
