"""Supervised fine-tuning: cross-entropy of the answers."""

from __future__ import annotations

from typing import final

from glm_lightning.objectives.likelihood import Likelihood
from glm_lightning.types import Conversation


@final
class SFT(Likelihood):
    """The answers of conversations and the tokens that end them."""

    learns = (Conversation,)
