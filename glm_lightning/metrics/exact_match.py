"""Exact match."""

from __future__ import annotations

import statistics


def score(predictions: list[str], references: list[str]) -> dict[str, float]:
    """Percentage of answers that equal their reference, spaces around them aside."""
    pairs = zip(predictions, references, strict=True)
    return {
        "exact_match": 100
        * statistics.fmean(prediction.strip() == reference.strip() for prediction, reference in pairs)
    }
