from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer
from tiny_training import Tiny, make_batch
from torch.utils.data import DataLoader

from glm_lightning.types import Batch


@pytest.fixture
def batches() -> list[Batch]:
    return [make_batch(index) for index in range(12)]


@pytest.fixture
def fit(batches: list[Batch]) -> Callable[..., tuple[Trainer, Tiny]]:
    """Two epochs of 12 micro-batches, two of which make a step, with a validation in the middle and at the end."""

    def run(module: Tiny | None = None, *, ckpt_path: Path | None = None, **options: Any) -> tuple[Trainer, Tiny]:
        module = module or Tiny()
        defaults: dict[str, Any] = {
            "max_epochs": 2,
            "accumulate_grad_batches": 2,
            "val_check_interval": 6,
            "log_every_n_steps": 2,
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_model_summary": False,
        }
        trainer = Trainer(**(defaults | options))
        validation = DataLoader(batches[:3], batch_size=None)  # type: ignore[arg-type, var-annotated]
        trainer.fit(module, DataLoader(batches, batch_size=None), validation, ckpt_path=ckpt_path)  # type: ignore[arg-type]
        return trainer, module

    return run
