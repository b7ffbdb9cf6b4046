"""What a method is given at run time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedModel

from glm_lightning.methods.tracing import OnNonFinite
from glm_lightning.models.quantization import Quantize
from glm_lightning.objectives.base import Objective
from glm_lightning.optim import NamedParameters
from glm_lightning.tokenizers import Tokenizer


@dataclass(frozen=True)
class Ingredients:
    """What a method is given at run time, beside the knobs of its yaml."""

    load: Callable[[], PreTrainedModel]
    objective: Objective
    optimizer: Callable[[NamedParameters], torch.optim.Optimizer]
    scheduler: Callable[[torch.optim.Optimizer], LRScheduler]
    seed: int
    base: str  # fingerprint of the base network
    base_dtype: torch.dtype = torch.float32  # the type of the base's weights on disk
    log_every_n_steps: int = 1
    on_non_finite: OnNonFinite = "stop"
    quantize: Quantize | None = None  # how the base's linear layers are held; None: as they are
    num_steps: int | None = None  # optimizer steps of the run; None while only the configuration is checked
    tokenizer: Tokenizer | None = None  # the base's; None while only the configuration is checked
    compile: bool = False  # the decoder layers
    liger: bool = False  # Liger's kernels for norms and gated activations
    start: Callable[[], Mapping[str, Tensor] | None] = lambda: None  # what the parameters begin with, if not anew
