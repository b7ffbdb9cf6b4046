"""ROUGE as the scripts of ChatGLM-6B to GLM-4-9B take it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from glm_lightning.metrics import Statistics, means, texts
from glm_lightning.types import Message


def statistics(predictions: Sequence[Message], references: Sequence[Message]) -> Statistics:
    """ROUGE-1, ROUGE-2 and ROUGE-L as F1 times 100 over words, punctuation included, each the mean over the pairs.

    Repeated words count once in ROUGE-1 and ROUGE-2, every time in ROUGE-L. An empty text scores 0. Source: the package
    ``rouge-chinese`` 1.0, which the official scripts of all generations call. Not comparable with `rouge`.
    """
    import rjieba

    pairs = [
        (_words(rjieba.cut(prediction)), _words(rjieba.cut(reference)))
        for prediction, reference in zip(*texts(predictions, references), strict=True)
    ]
    return means(
        {
            "rouge_chinese_1": [100 * _of_grams(*pair, size=1) for pair in pairs],
            "rouge_chinese_2": [100 * _of_grams(*pair, size=2) for pair in pairs],
            "rouge_chinese_l": [100 * _of_subsequence(*pair) for pair in pairs],
        }
    )


def fits(references: Sequence[Message]) -> bool:
    """For comparisons with published figures; to be asked for by name."""
    return False


def _words(pieces: Sequence[str]) -> list[str]:
    return [word for word in pieces if word.strip()]


def _of_grams(prediction: Sequence[str], reference: Sequence[str], *, size: int) -> float:
    predicted, wanted = (
        set(zip(*(words[start:] for start in range(size)), strict=False)) for words in (prediction, reference)
    )
    return _f1(len(predicted & wanted), len(predicted), len(wanted))


def _of_subsequence(prediction: Sequence[str], reference: Sequence[str]) -> float:
    """By the longest common subsequence, row by row."""
    longest = [0] * (len(reference) + 1)
    for word in prediction:
        before = longest
        longest = [0]
        for index, (wanted, (diagonal, above)) in enumerate(zip(reference, itertools.pairwise(before), strict=True)):
            longest.append(diagonal + 1 if word == wanted else max(above, longest[index]))
    return _f1(longest[-1], len(prediction), len(reference))


def _f1(common: int, predicted: int, wanted: int) -> float:
    return 2 * common / (predicted + wanted) if common else 0.0
