"""Corpus BLEU."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from glm_lightning.metrics import Statistics, of_corpus, texts
from glm_lightning.types import Message

_CJK = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")


def statistics(predictions: Sequence[Message], references: Sequence[Message]) -> Statistics:
    """BLEU-4 (0 to 100) of the whole corpus with the tokenisation that ``tokenization`` names.

    Source: Post, A Call for Clarity in Reporting BLEU Scores, 2018 (the ``sacrebleu`` package).
    """
    from sacrebleu.metrics import BLEU

    said, wanted = texts(predictions, references)
    # force: answers may end in a period with a space before it; that is no reason for a message on every call.
    bleu = BLEU(tokenize=tokenization(wanted), force=True)
    # What sacrebleu's own resampling calls: matches and lengths of each row, and the score of their sums.
    rows = bleu._extract_corpus_statistics(said, [wanted])
    return of_corpus("bleu", rows, lambda sums: bleu._compute_score_from_stats([round(each) for each in sums]).score)


def tokenization(references: Sequence[str]) -> Literal["zh", "13a"]:
    """The sacrebleu tokenisation for these references: "zh" (by character) where any holds CJK, otherwise "13a"."""
    return "zh" if any(_CJK.search(reference) for reference in references) else "13a"
