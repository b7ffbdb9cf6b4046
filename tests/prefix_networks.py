"""Tiny random networks of every family that a prefix is tested on, and the prefix as a cache would hold it."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    Glm4Config,
    Glm4MoeConfig,
    Glm4MoeLiteConfig,
    GlmConfig,
    LlamaConfig,
    PreTrainedModel,
    Qwen3Config,
)

from glm_lightning.models import prefix
from glm_lightning.models.chatglm import ChatGLMConfig

VOCABULARY, GMASK, SOP = 97, 95, 96
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "max_position_embeddings": 256,
}
_EXPERTS = {"moe_intermediate_size": 32, "n_routed_experts": 4, "num_experts_per_tok": 2, "first_k_dense_replace": 1}
_YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}


def _config(family: str):
    if family == "chatglm":
        sizes = {k: _SIZES[k] for k in ("vocab_size", "hidden_size", "num_attention_heads")}
        control = {"bos_token_id": SOP, "eos_token_id": 1, "pad_token_id": 0, "gmask_token_id": GMASK}
        return ChatGLMConfig(**sizes, **control, num_layers=3, inner_hidden_size=96, mask_token_id=94)
    if family == "glm":
        return GlmConfig(**_SIZES, attention_bias=True)
    if family == "glm4":
        return Glm4Config(**_SIZES, attention_bias=True)
    if family == "glm4_moe":
        return Glm4MoeConfig(**_SIZES, **_EXPERTS, attention_bias=True, use_qk_norm=True)
    if family == "glm4_moe_lite":
        sizes = {k: v for k, v in _SIZES.items() if k not in ("head_dim", "num_key_value_heads")}
        latent = {"q_lora_rank": 24, "kv_lora_rank": 32, "qk_rope_head_dim": 8, "qk_nope_head_dim": 12}
        return Glm4MoeLiteConfig(**sizes, **_EXPERTS, **latent, v_head_dim=16, num_key_value_heads=4)
    if family == "llama_yarn":
        return LlamaConfig(**_SIZES, rope_parameters=_YARN)
    if family == "llama":
        return LlamaConfig(**_SIZES)
    return Qwen3Config(**_SIZES)


FAMILIES = ("chatglm", "glm", "glm4", "glm4_moe", "glm4_moe_lite", "llama", "llama_yarn", "qwen3")
CACHED = tuple(family for family in FAMILIES if family not in ("chatglm", "glm4_moe_lite"))
"""Families that can be given a prefix in a cache: it holds keys and values, and rows of any kind may follow."""


def network_of(family: str, *, seed: int = 0, attention: str = "sdpa") -> PreTrainedModel:
    """Random weights, large enough that attention is not flat."""
    torch.manual_seed(seed)
    network = AutoModelForCausalLM.from_config(_config(family), attn_implementation=attention)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1 or "bias" in name:
                # the residual of ChatGLM-6B is seven times the size of the others'
                parameter.normal_(std=1.0 if "attention.dense" in name or "4h_to_h" in name else 0.15)
    return network.eval()


def encoder_for(network: PreTrainedModel, *, length: int = 5, hidden: int | None = None, seed: int = 1, dropout=0.0):
    """A random encoder, with a projection of inner width ``hidden`` if that is given."""
    torch.manual_seed(seed)
    geometry = prefix.Geometry.of(network)
    knobs = {} if hidden is None else {"embedding_dim": 24, "projection_hidden": hidden}
    encoder = prefix.PrefixEncoder(geometry, length=length, dropout=dropout, **knobs)
    return encoder.train(network.training)


def with_prefix(family: str, **knobs) -> PreTrainedModel:
    """A random network with a random prefix."""
    network = network_of(family)
    prefix.attach(network, encoder_for(network, **knobs))
    return network


def cache_of(encoder: prefix.PrefixEncoder, *, rows: int) -> DynamicCache:
    """The prefix as the content of a cache, for a network that knows nothing of prefixes."""
    sizes = encoder.geometry
    shape = (encoder.length, sizes.num_layers, 2, sizes.num_heads, sizes.key_dim)
    numbers = encoder.values().view(shape)
    cache = DynamicCache()
    for layer in range(sizes.num_layers):
        key, value = (numbers[:, layer, i].transpose(0, 1)[None].expand(rows, -1, -1, -1) for i in (0, 1))
        cache.update(key, value, layer)
    return cache


def logits_behind_cache(base: PreTrainedModel, encoder: prefix.PrefixEncoder, ids: Tensor) -> Tensor:
    """Logits of ``base`` over ``ids`` (B, T) whose positions start at 0, behind a cache that holds the prefix."""
    rows, length = ids.shape
    mask = torch.ones(rows, encoder.length + length, dtype=torch.long)
    positions = torch.arange(length)[None].expand(rows, -1)
    cache = cache_of(encoder, rows=rows)
    return base(input_ids=ids, attention_mask=mask, position_ids=positions, cache=cache).logits


def some_ids(rows: int, length: int, *, seed: int = 2) -> Tensor:
    """Random ids without padding and stops, whose middle is where ChatGLM-6B's answers begin."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, 94, (rows, length), generator=generator)
    ids[:, length // 2 - 1], ids[:, length // 2] = GMASK, SOP
    return ids
