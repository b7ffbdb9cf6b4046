"""Linear layers held in 4 or 8 bits for a while, as bitsandbytes holds them once they are loaded."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, cast, final

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from glm_lightning.models import quantization


@final
@dataclass(frozen=True)
class FewBits:
    """How the linear layers of a network are held; its output layer stays as it is.

    ``linear`` are the layers by identity: they may stand inside those of an adapter.
    """

    settings: BitsAndBytesConfig
    linear: Collection[int]

    @classmethod
    def of(cls, network: PreTrainedModel, settings: BitsAndBytesConfig) -> FewBits:
        """For the layers that transformers would quantise in ``network``, which no adapter is on yet."""
        head = network.get_output_embeddings()
        return cls(settings, {id(m) for m in network.modules() if type(m) is nn.Linear and m is not head})

    @contextlib.contextmanager
    def inside(self, module: nn.Module, *, dtype: torch.dtype) -> Iterator[dict[str, Tensor]]:
        """While it is entered, the linear layers in ``module`` are held so; what is stored of their weights, by name.

        ``dtype`` is the type that they have without it. They compute in the type of their inputs.
        """
        exchanged: list[tuple[nn.Module, str, nn.Module]] = []
        stored: dict[str, Tensor] = {}
        for path, parent in list(module.named_modules()):
            for name, child in list(parent.named_children()):
                if id(child) in self.linear:
                    held = self._held(cast(nn.Linear, child), dtype)
                    stored |= held.state_dict(prefix=f"{path}.{name}.".removeprefix("."))
                    held.bias = child.bias
                    parent._modules[name] = held
                    exchanged.append((parent, name, child))
        try:
            yield stored
        finally:
            for parent, name, child in exchanged:
                parent._modules[name] = child

    def _held(self, linear: nn.Linear, dtype: torch.dtype) -> nn.Module:
        """Without its bias."""
        import bitsandbytes

        given, layers = self.settings, cast(Any, bitsandbytes.nn)
        weight = linear.weight.detach().to(dtype)
        sizes = (linear.in_features, linear.out_features)
        made: Any
        how: dict[str, Any]
        if given.load_in_8bit:
            how = {"has_fp16_weights": given.llm_int8_has_fp16_weight}
            made = layers.Linear8bitLt(*sizes, bias=False, threshold=given.llm_int8_threshold, device="meta", **how)
            made.weight = layers.Int8Params(weight, requires_grad=False, **how).to(weight.device)
        else:
            how = {"quant_type": given.bnb_4bit_quant_type, "compress_statistics": given.bnb_4bit_use_double_quant}
            made = layers.Linear4bit(*sizes, bias=False, compute_dtype=linear.weight.dtype, device="meta", **how)
            made.weight = layers.Params4bit(weight, requires_grad=False, module=made, **how).to(weight.device)
            quantization.keep_trainable(made)
        # in training mode, int8 would quantise what is quantised
        return cast(nn.Module, made.eval())
