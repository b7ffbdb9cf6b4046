"""A tiny random network of each family, with widths that 4 bits take, a batch to learn, and methods on them."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from hydra.utils import get_class
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Glm4Config,
    Glm4MoeConfig,
    Glm4MoeLiteConfig,
    GlmConfig,
    LlamaConfig,
    PreTrainedModel,
)

from glm_lightning import config
from glm_lightning.methods.base import Method
from glm_lightning.methods.ingredients import Ingredients
from glm_lightning.models import quantization
from glm_lightning.models.chatglm import ChatGLMConfig
from glm_lightning.objectives.sft import SFT
from glm_lightning.types import IGNORE, Batch

VOCABULARY, GMASK, SOP = 97, 95, 96
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "max_position_embeddings": 128,
}
_EXPERTS = {"moe_intermediate_size": 32, "n_routed_experts": 4, "num_experts_per_tok": 2, "first_k_dense_replace": 1}

MIXTURES = ("glm4_moe", "glm4_moe_lite")
FAMILIES = ("glm", "glm4", "llama", "chatglm", *MIXTURES)


def config_of(family: str):
    if family == "chatglm":
        sizes = {key: _SIZES[key] for key in ("vocab_size", "hidden_size", "num_attention_heads")}
        control = {"bos_token_id": SOP, "eos_token_id": 1, "pad_token_id": 0, "gmask_token_id": GMASK}
        return ChatGLMConfig(**sizes, **control, num_layers=2, inner_hidden_size=128, mask_token_id=94)
    if family == "glm4_moe_lite":
        sizes = {key: value for key, value in _SIZES.items() if key != "head_dim"} | {"num_key_value_heads": 4}
        latent = {"q_lora_rank": 24, "kv_lora_rank": 32, "qk_rope_head_dim": 8, "qk_nope_head_dim": 12}
        return Glm4MoeLiteConfig(**sizes, **_EXPERTS, **latent, v_head_dim=16)
    if family == "glm4_moe":
        return Glm4MoeConfig(**_SIZES, **_EXPERTS, attention_bias=True, use_qk_norm=True)
    return {"glm": GlmConfig, "glm4": Glm4Config, "llama": LlamaConfig}[family](**_SIZES, attention_bias=True)


@cache
def _network(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(config_of(family))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1 or "bias" in name:
                # the residual of ChatGLM-6B is seven times the size of the others'
                parameter.normal_(std=0.8 if "attention.dense" in name or "4h_to_h" in name else 0.1)
    return network.eval()


def network_of(family: str, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A copy of the family's random network."""
    return copy.deepcopy(_network(family)).to(dtype)


@cache
def skeleton_of(family: str) -> PreTrainedModel:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config_of(family))


def quantized(family: str, kind: quantization.Quantize, folder: Path, *, device: str = "cpu") -> PreTrainedModel:
    """The network as it is loaded in so few bits; ``folder`` is where it is written first."""
    network_of(family).save_pretrained(folder)
    settings = quantization.settings(kind, double=True, compute_dtype=torch.float32)
    network = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=settings, dtype=torch.float32, device_map={"": device}
    )
    quantization.keep_trainable(network)
    return network


def ids(rows: int = 3, length: int = 14, *, seed: int = 2) -> Tensor:
    """Random ids (B, T) without padding and stops; ChatGLM-6B's answers begin in the middle."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(2, 94, (rows, length), generator=generator)
    drawn[:, length // 2 - 1], drawn[:, length // 2] = GMASK, SOP
    return drawn


def batch(rows: int = 3, length: int = 14, *, seed: int = 2) -> Batch:
    """Rows whose second half is learned."""
    input_ids = ids(rows, length, seed=seed)
    labels = input_ids.clone()
    labels[:, : length // 2 + 1] = IGNORE
    lengths = torch.full((rows,), length)
    return Batch.of(input_ids, labels, lengths, step_tokens=int((labels != IGNORE).sum()), rows=range(rows))


@cache
def node_of(name: str):
    """The configuration that ``method=name`` composes on the embedded model."""
    return config.compose([f"method={name}"])


def made(name: str, network: PreTrainedModel | None = None, **changes) -> Method:
    """The method of conf/method/ with the knobs of its yaml and ``changes``, put on ``network`` if that is given."""
    node = node_of(name)
    of_run = {key: changes.pop(key) for key in ("num_steps", "quantize", "tokenizer") if key in changes}
    knobs = {key: value for key, value in node.method.items() if not str(key).startswith("_")}
    ingredients = Ingredients(
        load=lambda: copy.deepcopy(network),
        objective=SFT(),
        optimizer=lambda named: torch.optim.AdamW([p for _, p in named if p.requires_grad], lr=1e-2),
        scheduler=None,
        seed=1,
        base="",
        quantize=node.quantize,
        num_steps=3,
    )
    method = get_class(node.method._target_)(replace(ingredients, **of_run), **{**knobs, **changes})
    if network is not None:
        torch.manual_seed(3)
        method.configure_model()
    return method


def learn(method: Method, *, steps: int = 3) -> list[float]:
    """Plain steps without a trainer on one and the same batch; the losses."""
    optimizer = torch.optim.AdamW(method.trained().values(), lr=1e-2)
    losses = []
    sample = batch()
    for _ in range(steps):
        loss = SFT().loss(method.network, sample).total / sample.step_tokens
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def logits(network, input_ids: Tensor | None = None) -> Tensor:
    """Logits (B, T, V) in evaluation mode, of real positions only."""
    given = ids(seed=9) if input_ids is None else input_ids
    training = [module for module in network.modules() if module.training]
    answer = network.eval()(input_ids=given, use_cache=False).logits[:, -given.shape[1] :]
    for module in training:
        module.training = True
    return answer
