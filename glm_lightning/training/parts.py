"""What a run is made of."""

from __future__ import annotations

from dataclasses import dataclass

import lightning.pytorch as pl

from glm_lightning.data.module import DataModule
from glm_lightning.data.plan import Plan
from glm_lightning.methods.base import Method
from glm_lightning.models import Source
from glm_lightning.models.precision import Precision
from glm_lightning.templates import Template
from glm_lightning.tokenizers import Tokenizer
from glm_lightning.training.examination import Examination


@dataclass(frozen=True)
class Parts:
    """Everything but the network, which the method loads when training starts."""

    source: Source
    tokenizer: Tokenizer
    template: Template
    data: DataModule
    precision: Precision
    trainer: pl.Trainer
    examination: Examination
    plan: Plan
    num_steps: int  # optimizer steps of the whole run
    method: Method
