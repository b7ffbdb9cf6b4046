"""The sizes of the released networks, for planning with those that are not here: what their config.json say of shapes.

What a file leaves out is what transformers' own class of the network says. The sizes of `HEARSAY` stand in no source of
their makers that could be read.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from glm_lightning.models import families
from glm_lightning.models.source import Source

_CHATGLM: dict[str, Any] = {
    "model_type": "chatglm",
    "bos_token_id": 130004,
    "eos_token_id": 130005,
    "mask_token_id": 130000,
    "gmask_token_id": 130001,
    "pad_token_id": 3,
    "hidden_size": 4096,
    "inner_hidden_size": 16384,
    "layernorm_epsilon": 1e-5,
    "max_sequence_length": 2048,
    "num_attention_heads": 32,
    "num_layers": 28,
    "position_encoding_2d": True,
    "torch_dtype": "float16",
    "vocab_size": 130528,
}
_CHATGLM2: dict[str, Any] = {
    "model_type": "chatglm",
    "ffn_hidden_size": 13696,
    "hidden_size": 4096,
    "kv_channels": 128,
    "layernorm_epsilon": 1e-5,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "num_attention_heads": 32,
    "num_layers": 28,
    "padded_vocab_size": 65024,
    "seq_length": 32768,
    "torch_dtype": "float16",
    "transformers_version": "4.27.1",
    "tie_word_embeddings": False,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_CHATGLM3: dict[str, Any] = _CHATGLM2 | {"seq_length": 8192, "transformers_version": "4.30.2"}
_GLM4_ENDS = [151329, 151336, 151338]
_GLM4: dict[str, Any] = _CHATGLM2 | {
    "layernorm_epsilon": 1.5625e-07,
    "num_layers": 40,
    "padded_vocab_size": 151552,
    "rope_ratio": 500,
    "seq_length": 131072,
    "torch_dtype": "bfloat16",
    "eos_token_id": _GLM4_ENDS,
    "pad_token_id": 151329,
}
_HF: dict[str, Any] = {"model_type": "glm", "attention_bias": True, "dtype": "bfloat16", "eos_token_id": _GLM4_ENDS}
_EDGE: dict[str, Any] = _HF | {
    "vocab_size": 59264,
    "head_dim": 128,
    "max_position_embeddings": 8192,
    "pad_token_id": 59246,
}
_EDGE |= {"eos_token_id": [59246, 59253, 59255], "tie_word_embeddings": True}
_GLM4_0414: dict[str, Any] = {"model_type": "glm4", "dtype": "bfloat16", "max_position_embeddings": 32768}
_GLM4_32B: dict[str, Any] = _GLM4_0414 | {
    "hidden_size": 6144,
    "num_hidden_layers": 61,
    "num_attention_heads": 48,
    "intermediate_size": 23040,
}
_AIR: dict[str, Any] = {"model_type": "glm4_moe", "dtype": "bfloat16", "head_dim": 128, "attention_bias": True}
_GLM45: dict[str, Any] = _AIR | {
    "hidden_size": 5120,
    "num_hidden_layers": 92,
    "intermediate_size": 12288,
    "moe_intermediate_size": 1536,
    "n_routed_experts": 160,
    "first_k_dense_replace": 3,
    "use_qk_norm": True,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "chatglm_6b": _CHATGLM,
    "chatglm2_6b": _CHATGLM2,
    "chatglm2_6b_32k": _CHATGLM2,
    "chatglm3_6b": _CHATGLM3,
    "chatglm3_6b_base": _CHATGLM3,
    "chatglm3_6b_32k": _CHATGLM3 | {"seq_length": 32768},
    "glm_4_9b": _GLM4 | {"rope_ratio": 1, "seq_length": 8192},
    "glm_4_9b_chat": _GLM4,
    "glm_4_9b_chat_1m": _GLM4 | {"multi_query_group_num": 4, "rope_ratio": 10000, "seq_length": 1048576},
    "glm_4_9b_chat_hf": _HF,
    "glm_4_9b_hf": _HF,
    "glm_edge_1_5b_chat": _EDGE
    | {
        "hidden_size": 2048,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "intermediate_size": 6144,
    },
    "glm_edge_4b_chat": _EDGE
    | {
        "hidden_size": 3072,
        "num_hidden_layers": 40,
        "num_attention_heads": 24,
        "num_key_value_heads": 6,
        "intermediate_size": 10240,
    },
    "glm_4_9b_0414": _GLM4_0414,
    "glm_z1_9b_0414": _GLM4_0414,
    "glm_4_32b_0414": _GLM4_32B,
    "glm_z1_32b_0414": _GLM4_32B,
    "glm_4_5": _GLM45,
    "glm_4_5_air": _AIR,
    "glm_4_6": _GLM45 | {"max_position_embeddings": 202752},
    "glm_4_7": _GLM45 | {"max_position_embeddings": 202752},
    "glm_4_7_flash": {"model_type": "glm4_moe_lite", "dtype": "bfloat16"},
}
"""config.json by the name of the release's file in conf/model/."""

HEARSAY = ("glm_edge_1_5b_chat", "glm_edge_4b_chat", "glm_4_7_flash")


def name_of(path: str) -> str | None:
    """The name in `CONFIGS` of what a hub calls ``path``; None if it is no release that is known."""
    name = path.rpartition("/")[2].lower().replace("-", "_").replace(".", "_")
    return name if name in CONFIGS else None


def published(source: Source) -> Source:
    """``source`` with the sizes as they are published, whatever lies where it points to."""
    from transformers import AutoConfig

    name = name_of(source.path)
    assert name is not None, "name_of comes first"
    raw, known = CONFIGS[name], replace(source)
    layout = families.layout(raw)
    # where they are remembered
    vars(known)["raw_config"] = raw
    vars(known)["config"] = AutoConfig.for_model(**raw) if layout is None else layout.config(raw)
    return known
