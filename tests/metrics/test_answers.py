"""Metrics of answers that are a number, a call or a class."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import multiclass_f1_score

from glm_lightning import metrics
from glm_lightning.metrics import numeric
from glm_lightning.types import Message, ToolCall


def said(*texts: str) -> list[Message]:
    return [Message("assistant", text) for text in texts]


def calling(*calls: tuple[str, dict[str, Any]], content: str = "") -> Message:
    return Message("assistant", content, tool_calls=tuple(ToolCall(*call) for call in calls))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("6 + 12 = 18.\n#### 18", "18"),
        ("#### 1,234", "1234"),
        ("#### $1,234.50 in all, of 7", "1234.50"),
        ("#### -3", "-3"),
        ("#### -$3.5", "-3.5"),
        ("#### +7", "7"),
        ("#### .5", "0.5"),
        ("#### 1.5e3", "1500"),
        ("first #### 1 then #### 2", "2"),
        ("####", None),
        ("no mark: 3 apples and 4 pears", "4"),
        ("so 10-3", "3"),
        ("so x = -3", "-3"),
        ("it costs 1,23 or 4567,890", "890"),
        ("答案是１８。", "18"),
        ("一共是−5元", "-5"),
        ("2,000,000.", "2000000"),
        ("#### none, so 12", "12"),
        ("nothing", None),
    ],
)
def test_the_number_of_a_text(text: str, expected: str | None) -> None:
    assert numeric.number(text) == (None if expected is None else Decimal(expected))


@given(st.decimals(allow_nan=False, allow_infinity=False, places=3), st.sampled_from(["#### {}", "it is {}", "${}"]))
def test_a_written_number_is_read_back(value: Decimal, form: str) -> None:
    assert numeric.number(form.format(f"{value:,}")) == value


def test_numbers_are_compared_by_value_and_marks_are_counted() -> None:
    references = said("#### 18", "#### 1,000", "#### -2.50", "no number", "#### 4")
    predictions = said("#### 18.00", "it is 1000", "#### 2.5", "7", "")
    assert metrics.find("numeric").score(predictions, references) == {"numeric": 50.0, "numeric_marked": 50.0}


def test_numeric_fits_answers_that_are_numbers() -> None:
    assert metrics.find("numeric").fits(said("3 = 3 #### 3", "12", "twelve"))
    assert not metrics.find("numeric").fits(said("3 dresses", "12 men", "#### 3"))
    assert not metrics.find("numeric").fits([])


CALL = ("weather", {"city": "北京", "days": 2, "units": {"t": "C", "dry": True}, "hours": [1, 2]})


@pytest.mark.parametrize(
    ("prediction", "same", "same_names"),
    [
        (calling(("weather", {"hours": [1, 2.0], "units": {"dry": True, "t": "C"}, "city": "北京", "days": 2})), 1, 1),
        (calling(("weather", {**CALL[1], "hours": [2, 1]})), 0, 1),
        (calling(("weather", {**CALL[1], "units": {"t": "C", "dry": 1}})), 0, 1),
        (calling(("weather", {**CALL[1], "days": "2"})), 0, 1),
        (calling(("weather", {})), 0, 1),
        (calling(("time", CALL[1])), 0, 0),
        (calling(CALL, CALL), 0, 0),
        (calling(CALL, content="let me see"), 1, 1),
        (calling(), 0, 0),
    ],
)  # fmt: skip
def test_calls_are_compared_as_json(prediction: Message, same: int, same_names: int) -> None:
    found = metrics.find("tool_calls").score([prediction], [calling(CALL)])
    assert found == {"tool_calls": 100.0 * same, "tool_names": 100.0 * same_names}


def test_the_order_of_calls_does_not_count_and_rows_without_any_have_no_say() -> None:
    two = [("a", {"x": 1}), ("b", {"x": None})]
    references = [calling(*two), calling(), calling()]
    predictions = [calling(*reversed(two)), calling(), calling(("a", {}))]
    assert metrics.find("tool_calls").score(predictions, references) == {"tool_calls": 50.0, "tool_names": 50.0}
    assert math.isnan(metrics.find("tool_calls").score([calling()], [calling()])["tool_calls"])


LABELS = ["好评", "差评", "中评", "none of them"]


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from(LABELS[:3])), min_size=1, max_size=30))
def test_f1_is_that_of_another_library(pairs: list[tuple[str, str]]) -> None:
    """Of torchmetrics, where an answer that is no class is a fourth class that is left out of the mean."""
    predictions, references = ([pair[side] for pair in pairs] for side in (0, 1))
    found = metrics.find("classes").score(said(*predictions), said(*references))
    ids = [torch.tensor([LABELS.index(label) for label in side]) for side in (predictions, references)]
    each = multiclass_f1_score(*ids, num_classes=4, average="none")
    classes = sorted(set(references))
    for name in classes:
        assert found[f"f1/{name}"] == pytest.approx(100 * float(each[LABELS.index(name)]))
    assert found["f1_macro"] == pytest.approx(sum(found[f"f1/{name}"] for name in classes) / len(classes))
    right = sum(prediction == reference for prediction, reference in pairs)
    assert found["accuracy"] == pytest.approx(100 * right / len(pairs))


def test_a_class_is_the_same_in_any_case_and_with_a_full_stop() -> None:
    found = metrics.find("classes").score(said("Yes.", " no！"), said("yes", "No"))
    assert found == {"accuracy": 100.0, "f1_macro": 100.0, "f1/no": 100.0, "f1/yes": 100.0}


def test_classes_fit_a_few_short_answers_that_recur() -> None:
    fits = metrics.find("classes").fits
    assert fits(said(*["positive", "negative"] * 3))
    assert not fits(said(*["positive"] * 6))  # one class only
    assert not fits(said(*["positive", "negative"] * 2))
    assert not fits(said(*["this dress is soft and slim and made of cotton", "no"] * 3))


def test_what_is_taken_by_itself_follows_the_references() -> None:
    def taken(references: list[Message]) -> set[str]:
        return {metric.name for metric in metrics.fitting(references)}

    always = {"rouge", "bleu", "chrf", "exact_match"}
    assert taken(said("白色的裙子", "这条连衣裙很修身")) == always
    assert taken(said("#### 3", "#### 4")) == {*always, "numeric"}
    assert taken([*said("a"), calling(CALL)]) == {*always, "tool_calls"}
    assert taken(said(*["positive", "negative"] * 3)) == {*always, "classes"}
