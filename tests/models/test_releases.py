"""Every yaml of conf/model, with the sizes of the real release, on the meta device: class, parameters, targets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from glm_lightning.methods.base import Ingredients
from glm_lightning.methods.lora import LoRA
from glm_lightning.models import Source

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf" / "model"

CHATGLM = {
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
CHATGLM2 = {
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
CHATGLM3 = CHATGLM2 | {"seq_length": 8192, "transformers_version": "4.30.2"}
GLM4_ENDS = [151329, 151336, 151338]
GLM4 = CHATGLM2 | {
    "layernorm_epsilon": 1.5625e-07,
    "num_layers": 40,
    "padded_vocab_size": 151552,
    "rope_ratio": 500,
    "seq_length": 131072,
    "torch_dtype": "bfloat16",
    "eos_token_id": GLM4_ENDS,
    "pad_token_id": 151329,
}
HF = {"model_type": "glm", "attention_bias": True, "dtype": "bfloat16", "eos_token_id": GLM4_ENDS}
EDGE = HF | {"vocab_size": 59264, "head_dim": 128, "max_position_embeddings": 8192, "pad_token_id": 59246}
EDGE = EDGE | {"eos_token_id": [59246, 59253, 59255], "tie_word_embeddings": True}
GLM4_0414 = {"model_type": "glm4", "dtype": "bfloat16", "max_position_embeddings": 32768}
GLM4_32B = GLM4_0414 | {
    "hidden_size": 6144,
    "num_hidden_layers": 61,
    "num_attention_heads": 48,
    "intermediate_size": 23040,
}
AIR = {"model_type": "glm4_moe", "dtype": "bfloat16", "head_dim": 128, "attention_bias": True}
GLM45 = AIR | {
    "hidden_size": 5120,
    "num_hidden_layers": 92,
    "intermediate_size": 12288,
    "moe_intermediate_size": 1536,
    "n_routed_experts": 160,
    "first_k_dense_replace": 3,
    "use_qk_norm": True,
}

# config.json, class, and the number of parameters: exact where it is published, else the billions of its model card;
# None where the sizes themselves are from hearsay
RELEASES: dict[str, tuple[dict[str, Any], str, int | float | None]] = {
    "chatglm_6b": (CHATGLM, "ChatGLMForCausalLM", 6_173_286_400),
    "chatglm2_6b": (CHATGLM2, "GlmForCausalLM", 6_243_584_000),
    "chatglm2_6b_32k": (CHATGLM2, "GlmForCausalLM", 6_243_584_000),
    "chatglm3_6b": (CHATGLM3, "GlmForCausalLM", 6_243_584_000),
    "chatglm3_6b_base": (CHATGLM3, "GlmForCausalLM", 6_243_584_000),
    "chatglm3_6b_32k": (CHATGLM3 | {"seq_length": 32768}, "GlmForCausalLM", 6_243_584_000),
    "glm_4_9b": (GLM4 | {"rope_ratio": 1, "seq_length": 8192}, "GlmForCausalLM", 9_399_951_360),
    "glm_4_9b_chat": (GLM4, "GlmForCausalLM", 9_399_951_360),
    "glm_4_9b_chat_1m": (
        GLM4 | {"multi_query_group_num": 4, "rope_ratio": 10000, "seq_length": 1048576},
        "GlmForCausalLM",
        9_483_857_920,
    ),
    "glm_4_9b_chat_hf": (HF, "GlmForCausalLM", 9_399_951_360),
    "glm_4_9b_hf": (HF, "GlmForCausalLM", 9_399_951_360),
    "glm_edge_1_5b_chat": (
        EDGE
        | {
            "hidden_size": 2048,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "intermediate_size": 6144,
        },
        "GlmForCausalLM",
        None,
    ),
    "glm_edge_4b_chat": (
        EDGE
        | {
            "hidden_size": 3072,
            "num_hidden_layers": 40,
            "num_attention_heads": 24,
            "num_key_value_heads": 6,
            "intermediate_size": 10240,
        },
        "GlmForCausalLM",
        None,
    ),
    "glm_4_9b_0414": (GLM4_0414, "Glm4ForCausalLM", 9.4),
    "glm_z1_9b_0414": (GLM4_0414, "Glm4ForCausalLM", 9.4),
    "glm_4_32b_0414": (GLM4_32B, "Glm4ForCausalLM", 32.6),
    "glm_z1_32b_0414": (GLM4_32B, "Glm4ForCausalLM", 32.6),
    "glm_4_5": (GLM45, "Glm4MoeForCausalLM", 355),
    "glm_4_5_air": (AIR, "Glm4MoeForCausalLM", 106),
    "glm_4_6": (GLM45 | {"max_position_embeddings": 202752}, "Glm4MoeForCausalLM", 355),
    "glm_4_7": (GLM45 | {"max_position_embeddings": 202752}, "Glm4MoeForCausalLM", 355),
    "glm_4_7_flash": ({"model_type": "glm4_moe_lite", "dtype": "bfloat16"}, "Glm4MoeLiteForCausalLM", 30),
}


def test_every_release_is_here() -> None:
    assert {file.stem for file in CONF.glob("*.yaml")} - {"local", "demo"} == RELEASES.keys()


@pytest.mark.parametrize("name", RELEASES)
def test_a_release_resolves(name: str, tmp_path: Path) -> None:
    raw, network, parameters = RELEASES[name]
    (tmp_path / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    yaml: Any = OmegaConf.load(CONF / f"{name}.yaml")
    assert (ROOT / "glm_lightning" / "templates" / f"{yaml.template}.py").is_file()
    source = Source(path=str(tmp_path), template=yaml.template)
    assert type(source.skeleton).__name__ == network
    assert {p.device.type for p in source.skeleton.parameters()} == {"meta"}
    if isinstance(parameters, int) and parameters > 1000:
        assert source.num_parameters == parameters
    elif parameters is not None:
        # model cards count the layer that predicts a second token, which transformers leaves out
        assert source.num_parameters / 1e9 == pytest.approx(parameters, rel=0.04)
    method = LoRA(Ingredients(None, None, None, None, seed=0, base=""))  # type: ignore[arg-type]
    method.check(source.skeleton)


@pytest.mark.parametrize("name", [name for name, (raw, _, _) in RELEASES.items() if raw["model_type"] == "chatglm"])
def test_the_rotary_base_follows_the_ratio(name: str, tmp_path: Path) -> None:
    raw = RELEASES[name][0]
    (tmp_path / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    config: Any = Source(path=str(tmp_path)).config
    if config.model_type == "glm":
        assert config.rope_parameters["rope_theta"] == 10000 * raw.get("rope_ratio", 1)
        assert config.max_position_embeddings == raw["seq_length"]
