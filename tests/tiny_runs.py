"""What tests of whole runs share."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

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
