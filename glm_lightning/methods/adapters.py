"""What methods that PEFT implements do alike: put an adapter on, switch it off, write it down."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import cast

from peft import PeftConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel


def put_on(network: PreTrainedModel, config: PeftConfig) -> nn.Module:
    """Freeze ``network`` and adapt it as ``config`` says."""
    network.requires_grad_(False)
    return cast(nn.Module, get_peft_model(network, config))


def switched_off(network: nn.Module | None) -> AbstractContextManager[None]:
    """While it is entered the base answers: the same weights, no second copy."""
    return cast(AbstractContextManager[None], cast(PeftModel, network).disable_adapter())


def write(network: nn.Module | None, folder: Path) -> None:
    """Write PEFT's adapter folder; stock ``PeftModel.from_pretrained`` reads it."""
    # What is trained beside the adapter is written anyway; PEFT would ask a hub whether the embedding is the base's.
    cast(PeftModel, network).save_pretrained(str(folder), save_embedding_layers=False)
