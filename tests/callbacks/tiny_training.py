from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from glm_lightning.types import IGNORE, Batch


def make_batch(index: int) -> Batch:
    generator = torch.Generator().manual_seed(index)
    num_rows, width = 3, 8 + 4 * (index % 3)
    lengths = torch.randint(3, width + 1, (num_rows,), generator=generator)
    input_ids = torch.randint(1, 50, (num_rows, width), generator=generator)
    labels = input_ids.clone()
    for row, length in enumerate(lengths.tolist()):
        labels[row, : index % 2] = IGNORE
        labels[row, length:] = IGNORE
    return Batch.of(input_ids, labels, lengths, step_tokens=1, rows=range(num_rows))


class Tiny(LightningModule):
    """Logs what a method logs, from the hook from which a method does: the loss is the step's number."""

    def __init__(self, in_step: Callable[[str], None] = lambda stage: None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.in_step = in_step

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.in_step("train")
        return (self.weight - 1).square().sum()

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0:
            self.log("train/loss", float(self.trainer.global_step))
            self.log("train/lr", 0.5)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.in_step("validate")
        self.log("val/loss", 7.25, batch_size=1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)
