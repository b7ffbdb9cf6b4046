"""Pretraining, gone on with: cross-entropy of plain texts."""

from __future__ import annotations

from typing import final

from glm_lightning.objectives.likelihood import Likelihood
from glm_lightning.types import Document


@final
class Pretrain(Likelihood):
    """All tokens of texts, and the token that ends a text."""

    learns = (Document,)
