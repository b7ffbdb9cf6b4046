"""BLEU-4 as the scripts of ChatGLM3-6B and GLM-4-9B take it."""

from __future__ import annotations

import statistics

from glm_lightning.metrics.bleu_4_characters import sentence_bleu


def score(predictions: list[str], references: list[str]) -> dict[str, float]:
    """BLEU-4 over words, from 0 to 1, the mean over the pairs.

    Source: THUDM/ChatGLM3, finetune_demo/finetune_hf.py, and THUDM/GLM-4, finetune/finetune.py. Not comparable with
    `bleu_4_characters`, which is times 100.
    """
    import rjieba

    pairs = zip(predictions, references, strict=True)
    scores = [sentence_bleu(rjieba.cut(prediction), rjieba.cut(reference)) for prediction, reference in pairs]
    return {"bleu_4_words": statistics.fmean(scores)}
