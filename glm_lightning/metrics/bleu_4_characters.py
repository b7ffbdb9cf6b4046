"""BLEU-4 as the scripts of ChatGLM-6B and ChatGLM2-6B take it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from glm_lightning.metrics import Statistics, means, texts
from glm_lightning.types import Message


def statistics(predictions: Sequence[Message], references: Sequence[Message]) -> Statistics:
    """BLEU-4 over characters times 100, the mean over the pairs.

    Source: THUDM/ChatGLM-6B and THUDM/ChatGLM2-6B, ptuning/main.py. Not comparable with `bleu` (of the whole corpus)
    nor with `bleu_4_words` (not times 100).
    """
    pairs = zip(*texts(predictions, references), strict=True)
    scores = [sentence_bleu(list(prediction), list(reference)) for prediction, reference in pairs]
    return means({"bleu_4_characters": [100 * score for score in scores]})


def fits(references: Sequence[Message]) -> bool:
    """For comparisons with published figures; to be asked for by name."""
    return False


def sentence_bleu(prediction: Sequence[str], reference: Sequence[str]) -> float:
    """BLEU-4 of one pair, with method 3 of Chen and Cherry (2014) where an order has no match, as ``nltk`` has it."""
    from nltk.translate import bleu_score  # type: ignore[import-untyped]

    with warnings.catch_warnings():
        # It says for every short answer that an order has no match, which is what the smoothing is for.
        warnings.simplefilter("ignore")
        smoothing = bleu_score.SmoothingFunction().method3
        return float(bleu_score.sentence_bleu([reference], prediction, smoothing_function=smoothing))
