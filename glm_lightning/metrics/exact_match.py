"""Exact match."""

from __future__ import annotations

from collections.abc import Sequence

from glm_lightning.metrics import Statistics, means, percent, texts
from glm_lightning.types import Message


def statistics(predictions: Sequence[Message], references: Sequence[Message]) -> Statistics:
    """Percentage of answers that equal their reference, spaces around them aside."""
    pairs = zip(*texts(predictions, references), strict=True)
    return means({"exact_match": [percent(prediction.strip() == reference.strip()) for prediction, reference in pairs]})
