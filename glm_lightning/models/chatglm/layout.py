"""ChatGLM-6B on disk: reading the old layout while loading, and writing the official one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self, final

import torch
from torch import Tensor
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import ConversionOps, WeightConverter

from glm_lightning.models.chatglm.configuration import NUM_IMAGE_TOKENS, ChatGLMConfig
from glm_lightning.models.chatglm.modeling import ChatGLMForCausalLM
from glm_lightning.models.chatglm.positions import inverse_frequencies

_KEYS = (
    "bos_token_id",
    "eos_token_id",
    "mask_token_id",
    "gmask_token_id",
    "pad_token_id",
    "hidden_size",
    "inner_hidden_size",
    "layernorm_epsilon",
    "max_sequence_length",
    "model_type",
    "num_attention_heads",
    "num_layers",
    "position_encoding_2d",
    "use_cache",
    "vocab_size",
)
"""What the official config.json says of the network, in its order."""


@final
class DropImageRows(ConversionOps):
    """Leave out the rows of the old image tokens, of a tensor with 20,000 rows more than the configuration says."""

    @torch.no_grad()
    def convert(  # type: ignore[override]
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        *,
        config: ChatGLMConfig,
        **kwargs: Any,
    ) -> dict[str, Tensor]:
        """``input_dict`` holds one tensor (V, H), or (V + 20,000, H)."""
        (stored,) = input_dict.values()
        tensor: Tensor = stored[0] if isinstance(stored, list) else stored
        if tensor.shape[0] == config.vocab_size + NUM_IMAGE_TOKENS:
            tensor = tensor[NUM_IMAGE_TOKENS:].clone()  # a copy, or else the rows would stay in memory
        return {target_patterns[0]: tensor}

    @property
    def reverse_op(self) -> Self:
        """Saving writes the new layout, in which there is nothing to drop."""
        return self


register_checkpoint_conversion_mapping(
    ChatGLMConfig.model_type,
    [WeightConverter(name, name, [DropImageRows()]) for name in ("word_embeddings.weight", "lm_head.weight")],
    overwrite=True,
)


def raw_config(config: ChatGLMConfig, *, original: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The official config.json of a network; ``original``, the one it was loaded with, gives order and other keys.

    Among them is ``auto_map``, by which tools made for this layout find the official code.
    """
    own = {key: getattr(config, key) for key in _KEYS}
    own["torch_dtype"] = str(config.dtype or torch.float16).removeprefix("torch.")
    given = {"architectures": ["ChatGLMModel"]} if original is None else original
    return {**given, **own}


def native(network: ChatGLMForCausalLM) -> ChatGLMForCausalLM:
    """The loaded network: here, as it is."""
    return network


def constants(config: ChatGLMConfig) -> dict[str, Tensor]:
    """What the official code stores and never reads: the rotary frequencies of each layer."""
    frequencies = inverse_frequencies(config.hidden_size // config.num_attention_heads)
    name = "transformer.layers.{}.attention.rotary_emb.inv_freq"
    return {name.format(index): frequencies.clone() for index in range(config.num_layers)}
