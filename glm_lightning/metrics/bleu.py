"""Corpus BLEU."""

from __future__ import annotations

import re
from typing import Literal

_CJK = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")


def score(predictions: list[str], references: list[str]) -> dict[str, float]:
    """BLEU (0 to 100) of the whole corpus with the tokenisation that ``tokenization`` names.

    Source: Post, A Call for Clarity in Reporting BLEU Scores, 2018 (the ``sacrebleu`` package).
    """
    from sacrebleu.metrics import BLEU

    assert len(predictions) == len(references)
    # force: answers may end in a period with a space before it; that is no reason for a message on every call.
    bleu = BLEU(tokenize=tokenization(references), force=True)
    return {"bleu": bleu.corpus_score(predictions, [references]).score}


def tokenization(references: list[str]) -> Literal["zh", "13a"]:
    """The sacrebleu tokenisation for these references: "zh" (by character) where any holds CJK, otherwise "13a"."""
    return "zh" if any(_CJK.search(reference) for reference in references) else "13a"
