"""BLEU-4 as the scripts of ChatGLM3-6B and GLM-4-9B take it."""

from __future__ import annotations

from collections.abc import Sequence

from glm_lightning.metrics import Statistics, means, texts
from glm_lightning.metrics.bleu_4_characters import sentence_bleu
from glm_lightning.types import Message


def statistics(predictions: Sequence[Message], references: Sequence[Message]) -> Statistics:
    """BLEU-4 over words, from 0 to 1, the mean over the pairs.

    Source: THUDM/ChatGLM3, finetune_demo/finetune_hf.py, and THUDM/GLM-4, finetune/finetune.py. Not comparable with
    `bleu_4_characters`, which is times 100.
    """
    import rjieba

    pairs = zip(*texts(predictions, references), strict=True)
    return means(
        {
            "bleu_4_words": [
                sentence_bleu(rjieba.cut(prediction), rjieba.cut(reference)) for prediction, reference in pairs
            ]
        }
    )


def fits(references: Sequence[Message]) -> bool:
    """For comparisons with published figures; to be asked for by name."""
    return False
