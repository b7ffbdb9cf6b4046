"""Numbers of trained parameters at real sizes, on the meta device, with the source of each."""

import pytest
import torch
from tiny_families import made
from transformers import AutoModelForCausalLM, Glm4Config, GlmConfig

from glm_lightning.models.chatglm import ChatGLMConfig

CHATGLM3 = GlmConfig(
    vocab_size=65024, hidden_size=4096, intermediate_size=13696, num_hidden_layers=28, num_attention_heads=32,
    num_key_value_heads=2, head_dim=128, attention_bias=True, pad_token_id=0,
)  # fmt: skip
GLM4 = GlmConfig(**{**CHATGLM3.to_dict(), "num_hidden_layers": 40, "vocab_size": 151552})
GLM4_32B = Glm4Config(
    vocab_size=151552, hidden_size=6144, intermediate_size=23040, num_hidden_layers=61, num_attention_heads=48,
    num_key_value_heads=2, head_dim=128, pad_token_id=0,
)  # fmt: skip
CHATGLM = ChatGLMConfig()

NORMS = 4 * 4096  # two layer norms with bias
LAYER_OF_CHATGLM = (4096 + 1) * 3 * 4096 + (4096 + 1) * 4096 + (4096 + 1) * 16384 + (16384 + 1) * 4096 + NORMS


def count(name, config, **knobs):
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(config)
        method = made(name, network, **knobs)
    return sum(parameter.numel() for parameter in method.trained().values())


@pytest.mark.parametrize(
    ("name", "config", "knobs", "expected"),
    [
        # shibing624/textgen issue 40: "trainable params: 3670016" with LoRA on query_key_value
        ("lora", CHATGLM, {"targets": "qkv"}, 3_670_016),
        # the same issue: "trainable params: 22021440" on all layers, which are 12 columns, rows and values of each
        ("adalora", CHATGLM, {"init_rank": 12}, 22_021_440),
        # THUDM/ChatGLM3 finetune_demo/lora_finetune.ipynb: "trainable params: 1,949,696" on the fused query_key_value.
        # Here queries, keys and values are layers of their own: two more A of rank 8 in each of 28 layers.
        ("lora", CHATGLM3, {"targets": "qkv"}, 1_949_696 + 2 * 28 * 8 * 4096),
        # THUDM/GLM-4 finetune/configs/lora.yaml (r: 8, q_proj, k_proj, v_proj); by hand
        ("lora", GLM4, {"targets": ["q_proj", "k_proj", "v_proj"]}, 40 * 8 * (3 * 4096 + 4096 + 2 * 256)),
        # PEFT's defaults for (IA)^3 on ChatGLM: query_key_value, dense_4h_to_h; by hand
        ("ia3", CHATGLM, {}, 28 * (3 * 4096 + 16384)),
        ("ia3", GLM4, {}, 40 * (2 * 256 + 13696)),
        # PEFT: num_virtual_tokens times the hidden size
        ("prompt_tuning", GLM4, {"num_tokens": 20, "init": "random"}, 20 * 4096),
        # P-tuning's encoder of PEFT: embedding and three linear layers with bias
        ("prompt_tuning", GLM4, {"num_tokens": 20, "encoder": "mlp"}, 20 * 4096 + 3 * (4096 + 1) * 4096),
        ("freeze", CHATGLM, {"num_layers": 3}, 3 * LAYER_OF_CHATGLM),
        # official ChatGLM-6B and ChatGLM3-6B configurations: 6,173,286,400 and 6,243,584,000 parameters
        ("full", CHATGLM, {}, 6_173_286_400),
        ("full", CHATGLM3, {}, 6_243_584_000),
        ("full", GLM4, {}, 9_399_951_360),
        # all linear layers of GLM-4-32B-0414 at rank 8, by hand: q, k, v, o, gate and up as one, down
        (
            "lora",
            GLM4_32B,
            {},
            61 * 8 * ((6144 + 6144) + 2 * (6144 + 256) + (6144 + 6144) + (6144 + 46080) + (23040 + 6144)),
        ),
    ],
)
def test_number_of_trained_parameters(name, config, knobs, expected):
    assert count(name, config, **knobs) == expected
