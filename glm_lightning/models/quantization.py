"""Hold frozen weights in 4 or 8 bits while they are loaded, by bitsandbytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch

if TYPE_CHECKING:
    from torch import nn
    from transformers import BitsAndBytesConfig

Quantize = Literal["nf4", "fp4", "int8"]


def settings(quantize: Quantize, *, double: bool, compute_dtype: torch.dtype) -> BitsAndBytesConfig:
    """What transformers is told. The output layer stays as it is.

    ``nf4`` are the quantiles of a normal distribution (Dettmers et al. 2023, arXiv:2305.14314), ``fp4`` a float of four
    bits; ``double`` quantises the scales of their blocks, too. ``int8`` keeps outlier columns in 16 bits (Dettmers et
    al. 2022, arXiv:2208.07339).
    """
    from transformers import BitsAndBytesConfig

    four: dict[str, Any] = {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": quantize,
        "bnb_4bit_use_double_quant": double,
        "bnb_4bit_compute_dtype": compute_dtype,
    }
    chosen = {"load_in_8bit": True} if quantize == "int8" else four
    return BitsAndBytesConfig(**chosen)


def keep_trainable(network: nn.Module) -> None:
    """Keep bitsandbytes from repacking 4-bit weights at the first evaluation on a CPU.

    Packed weights serve inference only: their product has no gradient, and nothing unpacks them when training goes on.
    """
    from bitsandbytes.nn import Linear4bit

    for module in network.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
