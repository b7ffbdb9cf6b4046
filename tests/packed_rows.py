"""Networks of several architectures and samples that are put into rows of theirs, alone or together."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, Glm4Config, Glm4MoeConfig, GlmConfig, LlamaConfig

from glm_lightning.types import IGNORE, Batch

SMALL = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 16}
SMALL |= {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": 1}
EXPERTS = {"moe_intermediate_size": 32, "n_routed_experts": 4, "num_experts_per_tok": 2, "first_k_dense_replace": 1}
CONFIGS = {
    "glm": GlmConfig(**SMALL),
    "glm4": Glm4Config(**SMALL),
    "glm4_moe": Glm4MoeConfig(**SMALL, **EXPERTS, n_shared_experts=1),
    "llama": LlamaConfig(**SMALL),
}
SAMPLES = [torch.arange(3, 3 + length) % 90 + 2 for length in (11, 5, 17, 8)]


def network(config, attention="sdpa"):
    torch.manual_seed(0)
    # the experts' grouped product has no float64
    experts = {"experts_implementation": "eager"} if config.model_type == "glm4_moe" else {}
    made = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.float64, **experts)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.2)
    return made.train()


def batch(rows, width):
    """Rows of samples; the first token of each sample is not predicted."""
    ids, labels = torch.zeros(len(rows), width, dtype=torch.long), torch.full((len(rows), width), IGNORE)
    positions = torch.arange(width).repeat(len(rows), 1)
    for number, row in enumerate(rows):
        start = 0
        for sample in row:
            stop = start + len(sample)
            ids[number, start:stop], labels[number, start + 1 : stop] = sample, sample[1:]
            positions[number, start:] = torch.arange(width - start)
            start = stop
    lengths = torch.tensor([sum(map(len, row)) for row in rows])
    packed = positions if any(len(row) > 1 for row in rows) else None
    return Batch.of(ids, labels, lengths, step_tokens=1, rows=range(len(rows)), position_ids=packed)
