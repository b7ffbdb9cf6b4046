"""The scores of the official scripts, against figures of their own libraries."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glm_lightning import metrics
from glm_lightning.types import Message

WORDS = ["红裙", "棉", "修身", "glm", "4", "the", "衬衫", "。"]
TEXTS = st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join)

ONE = "这件衬衫的款式非常的宽松，利落的线条可以很好的隐藏身材上的小缺点，穿在身上有着很好的显瘦效果。"
OTHER = "这款衬衫的版型宽松，线条利落，穿在身上很显瘦，可以很好的隐藏身材上的小缺点。"


def score(name, predictions, references):
    said = [[Message("assistant", text) for text in texts] for texts in (predictions, references)]
    return metrics.find(name).score(*said)


def test_figures_of_the_libraries():
    """rouge-chinese 1.0.3 over words, nltk's sentence_bleu with method3, as the official scripts call them."""
    assert score("rouge_chinese", [ONE], [OTHER]) == pytest.approx(
        {"rouge_chinese_1": 76.59574, "rouge_chinese_2": 50.90909, "rouge_chinese_l": 54.23729}, abs=1e-4
    )
    assert score("bleu_4_characters", [ONE], [OTHER])["bleu_4_characters"] == pytest.approx(45.63391, abs=1e-3)
    assert score("bleu_4_words", [ONE], [OTHER])["bleu_4_words"] == pytest.approx(0.40630, abs=1e-5)


def longest_common_subsequence(a, b):
    if not a or not b:
        return 0
    if a[-1] == b[-1]:
        return 1 + longest_common_subsequence(a[:-1], b[:-1])
    return max(longest_common_subsequence(a[:-1], b), longest_common_subsequence(a, b[:-1]))


def f1(common, predicted, wanted):
    return 200 * common / (predicted + wanted) if common else 0.0


@settings(deadline=None)  # the first call loads the package
@given(TEXTS, TEXTS)
def test_rouge_equals_a_naive_one(prediction, reference):
    a, b = prediction.split(), reference.split()
    found = score("rouge_chinese", [prediction], [reference])
    assert found["rouge_chinese_l"] == pytest.approx(f1(longest_common_subsequence(a, b), len(a), len(b)))
    for size in (1, 2):
        grams = [{tuple(words[i : i + size]) for i in range(len(words) - size + 1)} for words in (a, b)]
        expected = f1(len(grams[0] & grams[1]), len(grams[0]), len(grams[1]))
        assert found[f"rouge_chinese_{size}"] == pytest.approx(expected)


@pytest.mark.parametrize("metric", ["rouge_chinese", "bleu_4_characters", "bleu_4_words"])
def test_an_empty_answer_scores_zero(metric):
    """The official scripts end with an exception."""
    assert set(score(metric, [""], [ONE]).values()) == {0.0}


@pytest.mark.parametrize(
    ("metric", "whole"),
    [("rouge_chinese", 100), ("bleu_4_characters", 100), ("bleu_4_words", 1)],
    ids=lambda value: str(value),
)
def test_an_equal_answer_scores_everything(metric, whole):
    assert all(value == pytest.approx(whole) for value in score(metric, [ONE, OTHER], [ONE, OTHER]).values())


def test_the_mean_is_over_the_pairs():
    half = score("bleu_4_characters", [ONE, ""], [ONE, OTHER])["bleu_4_characters"]
    assert half == pytest.approx(50)
