"""A network that makes something that is not finite of one sample; run as a script, one of several ranks of it."""

from __future__ import annotations

import json
import sys

import torch
from torch import Tensor
from transformers.models.glm.modeling_glm import GlmMLP

import glm_lightning.methods.base  # before GlmMLP is spoilt, so that it is not taken for what it was
from glm_lightning.objectives.sft import SFT

SAMPLE = 5
"""Its index in the training set: without validation rows it stands on the sixth line."""


class _Overflow(torch.autograd.Function):
    @staticmethod
    def forward(ctx, states: Tensor) -> Tensor:
        return states.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient * float("inf")


def spoil(kind: str) -> dict[str, int]:
    """Spoil the sample in the second layer's MLP, in its ``forward``, its ``backward`` or behind it in the ``loss``.

    Gives counts of forward passes: of training and of those that were run again.
    """
    loss, mlp = SFT.loss, GlmMLP.forward
    now: dict[str, list[int]] = {"rows": []}
    calls = {"mlp": 0, "loss": 0}

    def remembering(self, network, batch):
        calls["loss"], calls["mlp"] = calls["loss"] + 1, 0
        now["rows"] = [number for number, row in enumerate(batch.rows) if row == SAMPLE and network.training]
        found = loss(self, network, batch)
        if kind == "loss" and now["rows"]:
            found.total = found.total + float("inf")  # its gradient is still finite
        return found

    def spoilt(self, states):
        calls["mlp"] += 1
        output = mlp(self, states)
        if calls["mlp"] != 2 or not now["rows"] or kind == "loss":
            return output
        if kind == "backward":
            return mlp(self, _Overflow.apply(states))
        mask = torch.zeros(len(output), 1, 1, dtype=torch.bool)
        mask[now["rows"]] = True
        return torch.where(mask, torch.nan, output)

    SFT.loss, GlmMLP.forward = remembering, spoilt
    return calls


if __name__ == "__main__":
    import glm_lightning
    from glm_lightning import config

    spoil(sys.argv[1])
    with config.exit_on_user_error():
        glm_lightning.train(json.loads(sys.argv[2]))
