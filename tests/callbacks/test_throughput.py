from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers.logger import DummyLogger
from tiny_training import Tiny
from torch import Tensor

from glm_lightning.callbacks.throughput import Throughput, peak_gib
from glm_lightning.types import Batch

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]


class Recorder(DummyLogger):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[dict[str, float]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.lines.append(metrics)


def test_each_window_is_counted_exactly(fit: Callable[..., Any], batches: list[Batch]) -> None:
    recorder, throughput = Recorder(), Throughput()
    fit(callbacks=[throughput], logger=recorder)
    lines = [line for line in recorder.lines if "speed/tokens_per_s" in line]
    assert [line["train/loss"] for line in lines] == [2, 4, 6, 8, 10, 12]
    # Two steps are a window: four micro-batches.
    for line, start in zip(lines, [0, 4, 8, 0, 4, 8], strict=True):
        window = batches[start : start + 4]
        tokens = sum(int(batch.lengths.sum()) for batch in window)
        labels = sum(len(batch.targets) for batch in window)
        assert line["data/padding"] == pytest.approx(1 - tokens / sum(batch.input_ids.numel() for batch in window))
        assert line["data/supervised"] == pytest.approx(labels / tokens)


def test_totals_hold_what_came_after_the_last_log(fit: Callable[..., Any], batches: list[Batch]) -> None:
    throughput = Throughput()
    fit(callbacks=[throughput], log_every_n_steps=5)
    assert throughput.num_tokens == 2 * sum(int(batch.lengths.sum()) for batch in batches)
    assert throughput.tokens_per_s == throughput.num_tokens / throughput.seconds


def test_validation_takes_no_time(fit: Callable[..., Any]) -> None:
    recorder, throughput = Recorder(), Throughput()
    spent = {"train": 0.0, "validate": 0.0}

    def wait(stage: str) -> None:
        start = time.perf_counter()
        time.sleep(0.005 if stage == "train" else 0.1)
        spent[stage] += time.perf_counter() - start

    start = time.perf_counter()
    fit(Tiny(wait), callbacks=[throughput], logger=recorder)
    elapsed = time.perf_counter() - start
    assert spent["train"] < throughput.seconds < elapsed - spent["validate"]
    windows = [line["speed/tokens_per_s"] for line in recorder.lines if "speed/tokens_per_s" in line]
    # A window with a validation in it must not be slower than the others by that validation's 0.3 s.
    assert max(windows) < 10 * min(windows)


def test_all_ranks_count(fit: Callable[..., Any], batches: list[Batch], monkeypatch: pytest.MonkeyPatch) -> None:
    def reduce(self: Any, tensor: Tensor, *args: Any, reduce_op: str, **kwargs: Any) -> Tensor:
        assert reduce_op == "sum"
        return tensor * 3

    monkeypatch.setattr("lightning.pytorch.strategies.SingleDeviceStrategy.reduce", reduce)
    throughput = Throughput()
    fit(callbacks=[throughput])
    assert throughput.num_tokens == 3 * 2 * sum(int(batch.lengths.sum()) for batch in batches)


def test_counts_are_read_in_logged_steps_only(fit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    original = Throughput._read

    def read(self: Throughput, trainer: Any) -> dict[str, float]:
        calls.append(trainer.global_step)
        return original(self, trainer)

    monkeypatch.setattr(Throughput, "_read", read)
    fit(callbacks=[Throughput()], log_every_n_steps=5)
    assert calls == [5, 10, 12]


def test_logging_switched_off_still_counts(fit: Callable[..., Any]) -> None:
    throughput = Throughput()
    fit(callbacks=[throughput], log_every_n_steps=0)
    assert throughput.tokens_per_s > 0


def test_before_training_there_is_no_speed() -> None:
    assert Throughput().tokens_per_s == 0


def test_peak_memory_grows_with_what_is_held() -> None:
    before = peak_gib(torch.device("cpu"))
    held = torch.ones(int((before + 0.1) * 2**28))  # float32: 2**28 of them are a GiB
    assert held[-1] == 1
    assert before + 0.05 < peak_gib(torch.device("cpu"))
