from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_training import Tiny

from glm_lightning.callbacks.progress import StepProgress
from glm_lightning.callbacks.throughput import Throughput

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def lines_of(text: str) -> list[str]:
    return [line.rstrip() for line in re.split(r"[\r\n]+", ESCAPE.sub("", text)) if line.strip()]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "150"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("glm_lightning.callbacks.progress._Bar._SECONDS", 0.0)


def test_plain_lines_without_a_terminal(fit: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    fit(callbacks=[StepProgress(every_n_steps=4), Throughput()])
    output = capsys.readouterr().out
    assert "\r" not in output
    assert "\x1b" not in output
    number = r"[\d,]+ tokens/s"
    expected = [
        r"step 3: val/loss 7.2500",
        rf"step 4/12  epoch 1  loss 4.0000  lr 5.00e-01  {number}  0:00:0\d left",
        r"step 6: val/loss 7.2500",
        rf"step 8/12  epoch 2  loss 8.0000  lr 5.00e-01  {number}  0:00:0\d left",
        r"step 9: val/loss 7.2500",
        rf"step 12/12  epoch 2  loss 12.0000  lr 5.00e-01  {number}",
        r"step 12: val/loss 7.2500",
    ]
    lines = lines_of(output)
    assert len(lines) == len(expected), output
    for line, pattern in zip(lines, expected, strict=True):
        assert re.fullmatch(pattern, line), (line, pattern)


def test_about_twenty_lines_by_default(fit: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    fit(callbacks=[StepProgress()], max_epochs=10, limit_val_batches=0, log_every_n_steps=2)
    lines = lines_of(capsys.readouterr().out)
    assert [line.split()[1] for line in lines] == [
        f"{step}/60" for step in range(4, 61, 4)
    ]  # of 3, the next that is logged


def test_a_bar_on_a_terminal(fit: Callable[..., Any], capsys: pytest.CaptureFixture[str], terminal: None) -> None:
    fit(callbacks=[StepProgress(), Throughput()])
    lines = lines_of(capsys.readouterr().out)
    bars = [line for line in lines if "━" in line]
    for step in range(1, 13):  # each step is drawn with its own loss
        assert any(f" {step}/12  epoch {1 + step // 7}  loss {step}.0000" in line for line in bars), step
    assert any("validation 2/3" in line for line in bars)
    assert [line for line in lines if "━" not in line] == [f"step {n}: val/loss 7.2500" for n in (3, 6, 9, 12)]
    assert "12/12  epoch 2  loss 12.0000" in bars[-1]


def test_a_failing_run_gives_the_cursor_back(
    fit: Callable[..., Any], capsys: pytest.CaptureFixture[str], terminal: None
) -> None:
    def fail(stage: str) -> None:
        raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"):
        fit(Tiny(fail), callbacks=[StepProgress()], num_sanity_val_steps=0)
    output = capsys.readouterr().out
    assert output.rindex("\x1b[?25h") > output.rindex("\x1b[?25l")


def test_other_ranks_show_nothing(fit: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    progress = StepProgress(every_n_steps=1)
    progress.disable()
    fit(callbacks=[progress])
    assert capsys.readouterr().out == ""


def test_a_resumed_run_estimates_from_its_own_steps(
    fit: Callable[..., Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    trainer, module = fit(max_epochs=1, limit_val_batches=0)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    minutes = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: 60.0 * next(minutes))  # each look at it is a minute later
    monkeypatch.setattr("glm_lightning.callbacks.progress.time", clock)
    capsys.readouterr()
    fit(module, callbacks=[StepProgress(every_n_steps=1)], limit_val_batches=0, ckpt_path=tmp_path / "last.ckpt")
    ends = [(line.split()[1], line.split("  ")[-1]) for line in lines_of(capsys.readouterr().out)]
    assert ends[:3] == [("7/12", "0:05:00 left"), ("8/12", "0:04:00 left"), ("9/12", "0:03:00 left")]
