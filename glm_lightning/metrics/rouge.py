"""ROUGE over words, Chinese words included."""

from __future__ import annotations

from collections.abc import Sequence

from glm_lightning.metrics import Statistics, means, texts
from glm_lightning.types import Message


def statistics(predictions: Sequence[Message], references: Sequence[Message]) -> Statistics:
    """ROUGE-1, ROUGE-2 and ROUGE-L as F1 times 100, each the mean over the pairs.

    An empty text scores 0; words are those of ``words``. Source: Lin, ROUGE: A Package for Automatic Evaluation of
    Summaries, 2004, as the ``rouge-score`` package has it.
    """
    # Loads nltk: a third of a second that only those who score should pay.
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=_Words())
    said = zip(*texts(predictions, references), strict=True)
    pairs = [scorer.score(reference, prediction) for prediction, reference in said]
    kinds = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}
    return means({name: [100 * pair[kind].fmeasure for pair in pairs] for name, kind in kinds.items()})


def words(text: str) -> list[str]:
    """Words of a text in lower case: Chinese segmented by jieba, Latin words and numbers whole, punctuation left out.

    The tokenizer of ``rouge-score`` keeps a-z and 0-9 only, so that every Chinese text would score 0.
    """
    import rjieba

    return [word for word in rjieba.cut(text.lower()) if any(character.isalnum() for character in word)]


class _Words:
    def tokenize(self, text: str) -> list[str]:
        return words(text)
