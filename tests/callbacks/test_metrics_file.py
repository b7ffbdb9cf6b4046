from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from glm_lightning.callbacks.metrics_file import JsonLines


def read(path: Path) -> list[dict[str, Any]]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text(encoding="utf-8").splitlines()]


def test_one_line_for_each_call_and_a_resumed_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "运行" / "metrics.jsonl"
    before = time.time()
    JsonLines(path).log_metrics({"train/loss": 1.5, "epoch": 0}, step=3)
    assert len(read(path)) == 1  # on disk while the logger lives
    JsonLines(path).log_metrics({"val/loss": 2.0, "名": 1.0}, step=4)
    first, second = read(path)
    assert before - 1 <= first.pop("time") <= second.pop("time") <= time.time() + 1
    assert first == {"step": 3, "train/loss": 1.5, "epoch": 0}
    assert second == {"step": 4, "val/loss": 2.0, "名": 1.0}
    assert "名" in path.read_text(encoding="utf-8")


def test_values_that_are_no_json_numbers_are_strings(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    JsonLines(path).log_metrics({"a": math.nan, "b": math.inf, "c": -math.inf}, step=1)
    line = read(path)[0]
    assert (line["a"], line["b"], line["c"]) == ("nan", "inf", "-inf")


def as_single(value: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.float32(value))


@given(value=st.floats(allow_nan=False, allow_infinity=False) | st.floats(width=32, allow_nan=False))
def test_no_digit_is_lost(value: float, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    JsonLines(path).log_metrics({"value": value}, step=1)
    written = float(read(path)[0]["value"])
    assert written == value or as_single(written) == value


def test_float32_values_have_no_digits_that_mean_nothing(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    JsonLines(path).log_metrics({"train/lr": float(np.float32(0.001))}, step=1)
    assert '"train/lr": 0.001}' in path.read_text(encoding="utf-8")


def test_only_the_first_rank_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    JsonLines(tmp_path / "metrics.jsonl").log_metrics({"a": 1.0}, step=1)
    assert not list(tmp_path.iterdir())
