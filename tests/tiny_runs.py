"""What tests of whole runs share."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file

from glm_lightning.callbacks import BestAndLast
from glm_lightning.runs import RunFolder

ROOT = Path(__file__).resolve().parents[1]
Weights = dict[str, torch.Tensor]


def weights(run: RunFolder) -> Weights:
    """What was trained, as it was after the last step."""
    return load_file(run.last / "trained.safetensors")


def largest_difference(one: Weights, other: Weights) -> float:
    """Largest absolute difference over all tensors."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def training_losses(run: RunFolder) -> list[float]:
    """The loss of each step that was logged."""
    return _logged(run, "train/loss")


def validation_losses(run: RunFolder) -> list[float]:
    """The loss of each validation."""
    return _logged(run, "val/loss")


def _logged(run: RunFolder, name: str) -> list[float]:
    lines = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    return [line[name] for line in lines if name in line]


class _Died(Exception):  # noqa: N818
    """Stands for whatever ends a process."""


@contextmanager
def dying(step: int) -> Iterator[None]:
    """The run in this block dies right after the checkpoint of ``step``."""
    original = BestAndLast.on_train_batch_end

    def saved_and_dead(self, trainer, *arguments):
        original(self, trainer, *arguments)
        done = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        if trainer.global_step == step and done % trainer.accumulate_grad_batches == 0:
            raise _Died

    with patch.object(BestAndLast, "on_train_batch_end", saved_and_dead), pytest.raises(_Died):
        yield
