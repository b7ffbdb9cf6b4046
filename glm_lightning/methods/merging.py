"""Fold what was learned into the weights of the base, and measure what that changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from glm_lightning.models.modes import evaluating
from glm_lightning.types import UserError


@dataclass(frozen=True)
class Merged:
    """A network without adapters that answers as the adapted one did.

    ``difference`` is the largest absolute difference of the probe's logits from those of the adapted network in the
    same weights; ``from_quantized``, where the adapter was learned on a quantised base, from those of the network that
    was trained: the merged one holds the full-precision weights, so it lacks the rounding that the adapter has seen.
    """

    network: PreTrainedModel
    difference: float
    from_quantized: float | None = None

    @property
    def told(self) -> str:
        """The measurement in a sentence."""
        text = f"merged: the largest difference of a logit is {self.difference:.2e}"
        if self.from_quantized is None:
            return text
        return (
            f"{text}; the adapter was learned on a quantised base and is merged into the full-precision one, which "
            f"changes the logits by up to {self.from_quantized:.2e}"
        )


def merge(network: nn.Module, probe: Tensor, *, trained: nn.Module | None = None) -> Merged:
    """Fold the adapter of ``network`` into its weights, in place; ``probe`` (B, T) are token ids to measure with.

    ``trained`` is the network as it was trained, if that was on a quantised base: the same adapter on that.

    Raises:
        UserError: the adapter is no change of weights, or the weights are quantised.
    """
    if not isinstance(network, PeftModel) or network.active_peft_config.is_prompt_learning:
        raise UserError(
            "merge: what was learned stands in front of the text, or is the network itself, and is no change of "
            "weights; export it as it is"
        )
    if _is_quantized(network):
        raise UserError("merge: the base is quantised; load it in full precision (quantize=null) and merge into that")
    live = None if trained is None else _logits(trained, probe)
    before = _logits(network, probe)
    merged = cast(PreTrainedModel, network.merge_and_unload(safe_merge=True))
    after = _logits(merged, probe)
    return Merged(merged, _largest(before, after), None if live is None else _largest(live, after))


def _is_quantized(network: nn.Module) -> bool:
    layers = (module for module in network.modules() if isinstance(module, nn.Linear))
    return any(not layer.weight.is_floating_point() for layer in layers)


@torch.no_grad()
def _logits(network: nn.Module, probe: Tensor) -> Tensor:
    device = next(network.parameters()).device
    with evaluating(network):
        logits: Tensor = network(input_ids=probe.to(device), use_cache=False).logits
    return logits.float().cpu()


def _largest(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())
