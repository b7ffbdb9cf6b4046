"""Confidence intervals."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from glm_lightning import metrics
from glm_lightning.evaluation import bootstrap
from glm_lightning.types import Message

WORDS = ["红裙", "棉", "修身", "glm", "4", "the", "衬衫", "yes", "no"]


def said(rng: random.Random, rows: int) -> list[Message]:
    return [Message("assistant", " ".join(rng.choices(WORDS, k=rng.randint(1, 6)))) for _ in range(rows)]


@pytest.fixture(scope="module")
def answers() -> tuple[list[Message], list[Message]]:
    rng = random.Random(0)
    references = said(rng, 12)
    return [r if rng.random() < 0.5 else p for p, r in zip(said(rng, 12), references, strict=True)], references


@pytest.mark.parametrize("name", [name for name in metrics.names() if name not in ("tool_calls", "classes")])
def test_a_drawn_score_is_that_of_the_drawn_rows(name: str, answers: tuple[list[Message], list[Message]]) -> None:
    """Means and corpus figures alike: the answers themselves are drawn here, and scored as any others."""
    metric, (predictions, references) = metrics.find(name), answers
    found = bootstrap.scores([metric], predictions, references, resamples=5, seed=3)
    counts = np.random.default_rng(3).multinomial(12, np.full(12, 1 / 12), size=5)
    for number, count in enumerate(counts):
        drawn = [row for row in range(12) for _ in range(count[row])]
        expected = metric.score([predictions[row] for row in drawn], [references[row] for row in drawn])
        for key, value in expected.items():
            assert found[key].drawn[number] == pytest.approx(value, nan_ok=True)
    for key, value in metric.score(predictions, references).items():
        assert found[key].value == pytest.approx(value, nan_ok=True)


def test_a_class_that_was_not_drawn_has_no_say() -> None:
    predictions = [Message("assistant", text) for text in ("yes", "yes", "yes", "no")]
    found = bootstrap.scores([metrics.find("classes")], predictions, predictions, resamples=200, seed=0)
    assert np.isnan(found["f1/no"].drawn).any()
    assert found["f1_macro"].interval == found["f1/no"].interval == (100.0, 100.0)


def test_the_interval_of_a_mean_is_that_of_the_normal_law() -> None:
    rng = random.Random(1)
    right = [rng.random() < 0.3 for _ in range(400)]
    references = [Message("assistant", "a")] * 400
    predictions = [Message("assistant", "a" if each else "b") for each in right]
    score = bootstrap.scores([metrics.find("exact_match")], predictions, references, resamples=4000, seed=5)
    found = score["exact_match"]
    error = 100 * math.sqrt(np.var(right) / 400)
    assert found.interval[0] == pytest.approx(found.value - 1.96 * error, abs=0.35)
    assert found.interval[1] == pytest.approx(found.value + 1.96 * error, abs=0.35)


def test_equal_seeds_draw_equal_rows_whatever_the_blocks(
    answers: tuple[list[Message], list[Message]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def drawn(seed: int) -> np.ndarray:
        return bootstrap.scores([metrics.find("rouge")], *answers, resamples=50, seed=seed)["rouge_l"].drawn

    first = drawn(1)
    monkeypatch.setattr(bootstrap, "_BLOCK", 12 * 7)
    assert np.array_equal(drawn(1), first)
    assert not np.array_equal(drawn(2), first)


def test_what_all_rows_agree_on_differs_for_sure() -> None:
    """A model that is better on every row is better, however wide the intervals of both are."""
    references = [Message("assistant", " ".join(WORDS[:length])) for length in (1, 3, 5, 7, 9) * 4]
    worse = [Message("assistant", each.text[: len(each.text) // 2]) for each in references]
    mixed = [good if number % 2 else bad for number, (good, bad) in enumerate(zip(references, worse, strict=True))]
    options = {"resamples": 500, "seed": 0}
    of = {
        name: bootstrap.scores([metrics.find("chrf")], said, references, **options)["chrf"]
        for name, said in {"best": references, "mixed": mixed, "worse": worse}.items()
    }
    low, high = of["best"].difference(of["mixed"])
    assert 0 < low < of["best"].value - of["mixed"].value < high
    assert of["mixed"].difference(of["mixed"]) == (0.0, 0.0)


def test_no_resamples_means_no_interval(answers: tuple[list[Message], list[Message]]) -> None:
    found = bootstrap.scores([metrics.find("exact_match")], *answers, resamples=0, seed=0)["exact_match"]
    assert math.isnan(found.interval[0])
    assert not math.isnan(found.value)
