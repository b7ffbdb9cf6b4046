"""Character n-gram F-score."""

from __future__ import annotations

from collections.abc import Sequence

from glm_lightning.metrics import Statistics, of_corpus, texts
from glm_lightning.types import Message


def statistics(predictions: Sequence[Message], references: Sequence[Message]) -> Statistics:
    """chrF2 (0 to 100) of the whole corpus: the F-score of n-grams of up to six characters, recall counting twice.

    Source: Popović, chrF: character n-gram F-score for automatic MT evaluation, 2015 (the ``sacrebleu`` package).
    """
    from sacrebleu.metrics import CHRF

    said, wanted = texts(predictions, references)
    chrf = CHRF()
    # as in `bleu`
    rows = chrf._extract_corpus_statistics(said, [wanted])
    return of_corpus("chrf", rows, lambda sums: chrf._compute_score_from_stats([round(each) for each in sums]).score)
