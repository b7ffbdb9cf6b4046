"""The official layout of ChatGLM2-6B, ChatGLM3-6B and GLM-4-9B, read into transformers' own `GlmForCausalLM`.

The three generations are one architecture, which transformers has natively: only names differ, and the projections of
attention are stored as one tensor. Nothing of the repositories' own code is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast, final

import torch
from torch import Tensor
from transformers import GlmConfig, GlmForCausalLM
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import Split, WeightConverter, WeightRenaming

from glm_lightning.models import families
from glm_lightning.types import UserError

_ROTARY_BASE = 10000.0

_FIXED = {
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "apply_residual_connection_post_layernorm": False,
    "fp32_residual_connection": False,
    "original_rope": True,
    "post_layer_norm": True,
    "rmsnorm": True,
}
"""What every release says, and what `GlmForCausalLM` takes for granted."""

_KEYS = {
    "num_layers": "num_hidden_layers",
    "padded_vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "ffn_hidden_size": "intermediate_size",
    "kv_channels": "head_dim",
    "num_attention_heads": "num_attention_heads",
    "layernorm_epsilon": "rms_norm_eps",
    "seq_length": "max_position_embeddings",
    "attention_dropout": "attention_dropout",
    "tie_word_embeddings": "tie_word_embeddings",
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "pad_token_id": "pad_token_id",
    "use_cache": "use_cache",
}
"""Official key, and the same thing in `GlmConfig`."""

_NEEDED = ("num_layers", "padded_vocab_size", "hidden_size", "ffn_hidden_size", "kv_channels", "num_attention_heads")


def config(raw: Mapping[str, Any]) -> GlmConfig:
    """What transformers calls the same architecture; ``raw`` is the official config.json.

    ``rope_ratio`` stretches the rotary positions, as in the official code (see `_rope`). (The converter that comes with
    transformers loses it: it asks a dict for an attribute.)

    Raises:
        UserError: a key says what no release says and this architecture has not, or what ``rope_ratio`` means is open.
    """
    wrong = [f"{key} is {raw[key]!r}, not {value!r}" for key, value in _FIXED.items() if raw.get(key, value) != value]
    missing = [key for key in _NEEDED if raw.get(key) is None]
    if wrong or missing:
        raise UserError(
            f"config.json: no ChatGLM2, ChatGLM3 or GLM-4 as they were released: "
            f"{'; '.join([*wrong, *(f'{key} is missing' for key in missing)])}"
        )
    heads = raw["multi_query_group_num"] if raw.get("multi_query_attention", False) else raw["num_attention_heads"]
    translated = GlmConfig(
        **{native: raw[key] for key, native in _KEYS.items() if key in raw},
        num_key_value_heads=heads,
        hidden_act="silu",
        attention_bias=True,
        rope_parameters=_rope(raw) | {"partial_rotary_factor": 0.5},
        architectures=["GlmForCausalLM"],
    )
    translated.dtype = getattr(torch, raw.get("torch_dtype") or "float16")
    return translated


def _rope(raw: Mapping[str, Any]) -> dict[str, Any]:
    """``rope_ratio`` divides the positions of ChatGLM2 (its 32K release), and multiplies the base of all later ones."""
    given, generation = raw.get("rope_ratio"), families.generation(raw)
    ratio = 1 if given is None else given
    if not isinstance(ratio, int | float) or ratio <= 0:
        raise UserError(f"config.json: rope_ratio is {ratio!r}: must be a number above 0, or null")
    if ratio != 1 and generation is None:
        raise UserError(
            f"config.json: rope_ratio is {ratio!r}, which divides the positions of ChatGLM2 and multiplies the rotary "
            "base of ChatGLM3, and nothing tells which of the two it is; write chatglm2 or chatglm3 into _name_or_path"
        )
    if ratio != 1 and generation == "chatglm2":
        return {"rope_type": "linear", "factor": float(ratio), "rope_theta": _ROTARY_BASE}
    return {"rope_type": "default", "rope_theta": _ROTARY_BASE * ratio}


def raw_config(config: GlmConfig, *, original: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The official config.json of a network; ``original``, the one it was loaded with, gives order and other keys."""
    rope: Any = config.rope_parameters
    linear = rope["rope_type"] == "linear"
    ratio = rope["factor"] if linear else rope["rope_theta"] / _ROTARY_BASE
    own = {key: getattr(config, native) for key, native in _KEYS.items()}
    own |= {
        "multi_query_attention": True,
        "multi_query_group_num": config.num_key_value_heads,
        "rope_ratio": int(ratio) if ratio == int(ratio) else ratio,
        "torch_dtype": str(config.dtype or torch.float16).removeprefix("torch."),
    }
    if original is None:
        made = {"model_type": "chatglm", "architectures": ["ChatGLMModel"], **_FIXED, **own}
        if ratio != 1 and families.generation(made) is None:
            # The name alone tells what `rope_ratio` means; see `_rope`.
            made["_name_or_path"] = f"THUDM/chatglm{2 if linear else 3}-6b-32k"
        return made
    # Keys that the original leaves out stay out while they say what their absence says.
    default = own | {"rope_ratio": 1, "bos_token_id": None}
    return {**original, **{key: value for key, value in own.items() if key in original or value != default[key]}}


@final
class OfficialGlm(GlmForCausalLM):
    """Reads the official layout while `from_pretrained` streams it in, quantised or not; see `native`."""

    # Stored by the official code and never read by it.
    _keys_to_ignore_on_load_unexpected = {r"rotary_pos_emb\.inv_freq"}  # noqa: RUF012


register_checkpoint_conversion_mapping(
    OfficialGlm.__name__,
    [
        WeightRenaming(r"^transformer\.embedding\.word_embeddings\.", "model.embed_tokens."),
        WeightRenaming(r"^transformer\.output_layer\.", "lm_head."),
        WeightRenaming(r"^transformer\.encoder\.final_layernorm\.", "model.norm."),
        WeightRenaming(r"^transformer\.encoder\.layers\.", "model.layers."),
        WeightRenaming(r"\.self_attention\.dense\.", ".self_attn.o_proj."),
        WeightRenaming(r"\.mlp\.dense_h_to_4h\.", ".mlp.gate_up_proj."),
        WeightRenaming(r"\.mlp\.dense_4h_to_h\.", ".mlp.down_proj."),
        WeightConverter(
            "self_attention.query_key_value",
            ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
            operations=[Split(0)],
        ),
    ],
    overwrite=True,
)


READER = OfficialGlm
"""The class that loads the official files."""


def native(network: OfficialGlm) -> GlmForCausalLM:
    """The loaded network as transformers' own class, which it is in all but name: saving writes its layout."""
    network.__class__ = GlmForCausalLM  # type: ignore[assignment]
    del network._weight_conversions
    return cast(GlmForCausalLM, network)


def constants(config: GlmConfig) -> dict[str, Tensor]:
    """What the official code stores and never reads: rotary frequencies in the weights' type, ``rope_ratio`` or not."""
    assert config.head_dim is not None
    width = config.head_dim // 2
    exponents = torch.arange(0, width, 2).to(config.dtype) / width
    return {"transformer.rotary_pos_emb.inv_freq": 1.0 / (_ROTARY_BASE**exponents)}
