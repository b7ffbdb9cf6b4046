"""A learned prefix of keys and values at every layer: P-tuning v2, seen by the attention function."""

from glm_lightning.models.prefix.attention import attach, encoder_of
from glm_lightning.models.prefix.encoder import PrefixEncoder
from glm_lightning.models.prefix.geometry import Geometry
from glm_lightning.models.prefix.rotation import layers_of_text
from glm_lightning.models.prefix.storage import is_official, is_prefix, load, read, save, save_official, why_not_peft

__all__ = [
    "Geometry",
    "PrefixEncoder",
    "attach",
    "encoder_of",
    "is_official",
    "is_prefix",
    "layers_of_text",
    "load",
    "read",
    "save",
    "save_official",
    "why_not_peft",
]
