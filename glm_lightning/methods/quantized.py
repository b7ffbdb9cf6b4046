"""What a network must be like for its linear layers to be held in 4 or 8 bits."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from transformers import PreTrainedModel

from glm_lightning.methods import layers
from glm_lightning.models.quantization import Quantize

BLOCK = 64
"""Weights that share a scale in bitsandbytes' 4-bit types."""


def problems(skeleton: PreTrainedModel, quantize: Quantize) -> Iterator[str]:
    """What keeps ``skeleton`` (on the meta device) from being quantised, each with what to do instead."""
    yield from _expert_problems(skeleton, quantize)
    if quantize != "int8":
        yield from _width_problems(skeleton, quantize)


def _expert_problems(skeleton: PreTrainedModel, quantize: Quantize) -> Iterator[str]:
    """Fused experts are no linear layers: loading would leave them as they are without a word."""
    experts = layers.experts(skeleton)
    if experts:
        in_experts = sum(parameter.numel() for parameter in experts.values())
        total = sum(parameter.numel() for parameter in skeleton.parameters())
        yield (
            f"quantize is {quantize}: the experts of this network, {in_experts / total:.0%} of its {total:,} "
            f"parameters, are no linear layers and would stay as they are ({2 * in_experts / 2**30:,.1f} GiB in 16 "
            "bits); use quantize=null with method=lora, whose method.experts=true adapts the experts, too"
        )


def _width_problems(skeleton: PreTrainedModel, quantize: Quantize) -> Iterator[str]:
    """Layers whose rows are no whole blocks.

    Measured with bitsandbytes 0.50.2 on a CPU with AVX-512: 32 and 96 inputs come back with two to four times the
    error, unsaid, and its packed inference ends in a reshape error.
    """
    head = skeleton.get_output_embeddings()
    for name, module in skeleton.named_modules():
        if isinstance(module, nn.Linear) and module is not head and module.in_features % BLOCK:
            yield (
                f"quantize is {quantize}: {name} has {module.in_features} inputs; 4 bits need multiples of {BLOCK}; "
                "use quantize=int8, which takes any width, or quantize=null"
            )
