"""The network as a run would load it, on the meta device."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from glm_lightning.models import Source
from glm_lightning.models.quantization import Quantize
from glm_lightning.models.source import WeightsDtype

BLOCK = 64
"""Weights that share a scale in bitsandbytes' 4-bit types."""

SCALES = 256
"""Scales that share a scale of their own where they are quantised, too (Dettmers et al. 2023, arXiv:2305.14314)."""


def skeleton(source: Source, *, dtype: WeightsDtype) -> PreTrainedModel:
    """A network of its own on the meta device, as ``source.load(dtype=dtype)`` gives it, without weights.

    Layers in few bits are `InFewBits`.
    """
    chosen = source.dtype if source.dtype != "auto" else dtype
    held = source.stored_dtype if chosen == "auto" else getattr(torch, chosen)
    network = _anew(source, source.config).skeleton
    for parameter in network.parameters():
        parameter.data = parameter.data.to(held)
    if source.attention == "eager":
        network.set_attn_implementation("eager")
    if source.quantize is not None:
        _quantize(network, source.quantize, double=source.double_quantize)
    if source.gradient_checkpointing:
        network.activation_checkpointing_enable({"use_reentrant": False})
    return network


def shallow(source: Source, *, num_layers: int, vocabulary: int) -> PreTrainedModel:
    """The same network with fewer layers and tokens, of its stored type, on the meta device."""
    config = copy.deepcopy(source.config)
    config.num_hidden_layers = num_layers
    config.vocab_size, config.pad_token_id = vocabulary, 0
    return _anew(source, config).skeleton


def _anew(source: Source, config: Any) -> Source:
    """``source`` with a skeleton of its own: it remembers one, and adapting one changes it."""
    anew = replace(source)
    vars(anew)["config"] = config
    return anew


def num_bytes(network: nn.Module) -> int:
    """Bytes of parameters and buffers; what is shared counts once."""
    narrow = {id(m.weight): m.num_bytes for m in network.modules() if isinstance(m, InFewBits)}
    held: dict[int, Tensor] = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    return sum(narrow.get(key, tensor.numel() * tensor.element_size()) for key, tensor in held.items())


class InFewBits(nn.Linear):
    """Stands for a linear layer of bitsandbytes: its weight is made wide for each product, and dropped again."""

    num_bytes: int

    def forward(self, input: Tensor) -> Tensor:
        """As `nn.Linear`."""
        return cast(Tensor, _WidenedProduct.apply(input, self.weight, self.bias))  # type: ignore[no-untyped-call]


class _WidenedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return torch.nn.functional.linear(input.to(weight.dtype), weight.clone(), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return grad @ weight.clone() if ctx.needs_input_grad[0] else None, None, None


def _quantize(network: PreTrainedModel, quantize: Quantize, *, double: bool) -> None:
    """All linear layers but the head, as transformers does."""
    head = network.get_output_embeddings()
    for module in list(network.modules()):
        if type(module) is nn.Linear and module is not head:
            module.__class__ = InFewBits
            assert isinstance(module, InFewBits)
            module.num_bytes = quantized_bytes(module.out_features, module.in_features, quantize, double=double)


def quantized_bytes(outputs: int, inputs: int, quantize: Quantize, *, double: bool) -> int:
    """Bytes of a quantised weight with its scales.

    Four bits: half a byte a weight and a float32 a block of 64; doubly quantised scales are a byte each, and a float32
    for 256 of them. ``int8``: a byte a weight and a float32 an output.
    """
    weights = outputs * inputs
    if quantize == "int8":
        return weights + 4 * outputs
    blocks = -(-weights // BLOCK)
    return weights // 2 + (blocks + 4 * -(-blocks // SCALES) if double else 4 * blocks)
