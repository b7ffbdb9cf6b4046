"""Answers as classes: accuracy, and the F1 of each class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from glm_lightning.metrics import Numbers, Statistics, texts
from glm_lightning.types import Message

LONGEST, MOST, FEWEST_ROWS = 32, 20, 3
"""What counts as a class by itself: characters of an answer, number of answers that differ, rows for each of them."""


def statistics(predictions: Sequence[Message], references: Sequence[Message]) -> Statistics:
    """Accuracy, F1 of each class (``f1/<class>``) and their mean, as percentages.

    The classes are those of the references; any other answer belongs to none. Compared without regard to case, to
    spaces around and a full stop behind. A class that no row has, and no answer says, has no say in the mean (van
    Rijsbergen 1979; macro average as in Sokolova and Lapalme 2009).
    """
    said, wanted = ([_label(text) for text in side] for side in texts(predictions, references))
    classes = sorted(set(wanted))
    table = np.array([[s == c for c in classes] + [w == c for c in classes] for s, w in zip(said, wanted, strict=True)])
    table = table.reshape(-1, 2, len(classes))
    right = table.all(axis=1)
    rows = np.concatenate([right, table.sum(axis=1), np.ones((len(table), 1))], axis=1).astype(np.float64)

    def values(sums: Numbers) -> dict[str, Numbers]:
        hits, marks = sums[..., : len(classes)], sums[..., len(classes) : -1]
        with np.errstate(invalid="ignore"):
            f1 = 200 * hits / marks
            accuracy = 100 * hits.sum(-1) / sums[..., -1]
            mean = np.where(marks > 0, f1, 0).sum(-1) / (marks > 0).sum(-1)
        of_classes = {f"f1/{name}": f1[..., i] for i, name in enumerate(classes)}
        return {"accuracy": accuracy, "f1_macro": mean} | of_classes

    return Statistics(rows, values)


def fits(references: Sequence[Message]) -> bool:
    """The references are a few short texts that come again and again."""
    labels = [_label(each.text) for each in references]
    different = set(labels)
    is_short = all(0 < len(label) <= LONGEST for label in different)
    return is_short and 2 <= len(different) <= MOST and len(labels) >= FEWEST_ROWS * len(different)


def _label(text: str) -> str:
    return text.strip().rstrip(".。!！").strip().casefold()
