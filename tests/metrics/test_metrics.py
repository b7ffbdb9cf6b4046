from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glm_lightning import metrics
from glm_lightning.metrics import bleu, rouge
from glm_lightning.types import Message, UserError

WORDS = ["红裙", "棉", "修身", "glm", "4", "the", "衬衫"]
TEXTS = st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join)

BOUNDED = [name for name in metrics.names() if name not in ("tool_calls", "numeric")]
"""Those that every answer to any reference has a score of."""


def said(*texts: str) -> list[Message]:
    return [Message("assistant", text) for text in texts]


def score(name: str, predictions: list[str], references: list[str]) -> dict[str, float]:
    return metrics.find(name).score(said(*predictions), said(*references))


def f1(common: int, predicted: int, wanted: int) -> float:
    return 200 * common / (predicted + wanted) if common else 0.0


def longest_common_subsequence(a: list[str], b: list[str]) -> int:
    if not a or not b:
        return 0
    if a[-1] == b[-1]:
        return 1 + longest_common_subsequence(a[:-1], b[:-1])
    return max(longest_common_subsequence(a[:-1], b), longest_common_subsequence(a, b[:-1]))


def common_ngrams(a: list[str], b: list[str], n: int) -> tuple[int, int, int]:
    left, right = ([tuple(words[i : i + n]) for i in range(len(words) - n + 1)] for words in (a, b))
    return sum(min(left.count(g), right.count(g)) for g in set(left)), len(left), len(right)


@settings(deadline=None)  # the first call loads the package
@given(TEXTS, TEXTS)
def test_rouge_equals_a_naive_one_over_words(prediction: str, reference: str) -> None:
    a, b = rouge.words(prediction), rouge.words(reference)
    found = score("rouge", [prediction], [reference])
    assert found["rouge_l"] == pytest.approx(f1(longest_common_subsequence(a, b), len(a), len(b)))
    assert found["rouge_1"] == pytest.approx(f1(*common_ngrams(a, b, 1)))
    assert found["rouge_2"] == pytest.approx(f1(*common_ngrams(a, b, 2)))


def test_rouge_by_hand() -> None:
    # Words: 我/喜欢/红色/裙子 and 我/喜欢/蓝色/裙子: 3 of 4 in common, 1 of 3 pairs.
    found = score("rouge", ["我喜欢红色裙子。"], ["我喜欢蓝色裙子！"])
    assert found == pytest.approx({"rouge_1": 75.0, "rouge_2": 100 / 3, "rouge_l": 75.0})


def test_rouge_is_the_mean_over_the_pairs() -> None:
    assert score("rouge", ["好的", "不"], ["好的", "是"])["rouge_l"] == 50.0


def test_words_keep_chinese_latin_and_numbers_and_drop_punctuation() -> None:
    assert rouge.words("GLM-4 只要 3.5 元，very good！") == ["glm-4", "只要", "3.5", "元", "very", "good"]


@pytest.mark.parametrize("empty", ["", "  ", "。，！"])
def test_an_empty_answer_scores_zero_everywhere(empty: str) -> None:
    for name in BOUNDED:
        assert set(score(name, [empty], ["白色的裙子"]).values()) == {0.0}


@pytest.mark.parametrize("text", ["这条连衣裙很修身，面料柔软。", "this dress is soft and slim ."])
def test_a_perfect_answer_scores_a_hundred_everywhere(text: str) -> None:
    for name in BOUNDED:
        for value in score(name, [text], [text]).values():
            # as its source has it, not times 100
            assert value == pytest.approx(1.0 if name == "bleu_4_words" else 100.0)


def test_bleu_takes_chinese_by_character() -> None:
    references = ["这条裙子很好看"]
    assert bleu.tokenization(references) == "zh"
    # Without segmentation the whole sentence would be one wrong word. Matches of 1- to 4-grams: 5/6, 4/5, 3/4, 2/3,
    # one character too short: brevity penalty exp(1 - 7/6).
    expected = 100 * (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25 * 2.718281828459045 ** (1 - 7 / 6)
    assert score("bleu", ["这条裙子很美"], references)["bleu"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("references", "expected"),
    [
        (["a dress"], "13a"),
        (["a dress", "一条 dress"], "zh"),
        (["、。！"], "13a"),
        (["㐀"], "zh"),
        (["\U00020000"], "zh"),
    ],
)
def test_bleu_tokenization_follows_the_references(references: list[str], expected: str) -> None:
    assert bleu.tokenization(references) == expected


def test_exact_match_counts_equal_answers() -> None:
    assert score("exact_match", [" 好\n", "好。", "x", "y"], ["好", "好", "x", "y"]) == {"exact_match": 75.0}


def test_unequal_numbers_of_texts_are_our_own_mistake() -> None:
    for name in metrics.names():
        with pytest.raises((ValueError, AssertionError)):
            score(name, ["a", "b"], ["a"])


def test_unknown_metric_names_those_there_are() -> None:
    with pytest.raises(UserError, match=r"bleu, .*exact_match, .*rouge.*'rouge'"):
        metrics.find("roug")


def test_importing_a_metric_loads_no_scoring_package() -> None:
    code = (
        "import sys; from glm_lightning import metrics; [metrics.find(name) for name in metrics.names()]; "
        "assert not {'nltk', 'rouge_score', 'sacrebleu', 'rjieba'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
