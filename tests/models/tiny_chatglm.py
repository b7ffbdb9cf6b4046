"""A random tiny ChatGLM-6B, samples for it, and the same network written out a second time, number by number."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import torch
from torch import Tensor

from glm_lightning.models.chatglm import ChatGLMConfig, ChatGLMForCausalLM

PAD, MASK, GMASK, SOP, EOP = 3, 80, 81, 84, 85


def config(**changes: object) -> ChatGLMConfig:
    sizes = {
        "vocab_size": 96, "hidden_size": 64, "num_layers": 2, "num_attention_heads": 4, "inner_hidden_size": 128,
        "max_sequence_length": 128, "bos_token_id": SOP, "eos_token_id": EOP, "pad_token_id": PAD,
        "mask_token_id": MASK, "gmask_token_id": GMASK,
    }  # fmt: skip
    return ChatGLMConfig(**{**sizes, **changes})


def network(*, dtype: torch.dtype = torch.float64, attention: str = "sdpa", **changes: object) -> ChatGLMForCausalLM:
    """With weights so large that every mistake shows, and answers that depend on all of the prompt."""
    made = ChatGLMForCausalLM._from_config(config(**changes), dtype=dtype, attn_implementation=attention)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(noise * 0.4 if parameter.ndim == 2 else noise * 0.1 + name.endswith("layernorm.weight"))
    return made.eval()


def words(count: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(4, 80), k=count)


def prompt(length: int, seed: int) -> list[int]:
    return [*words(length, seed), GMASK, SOP]


def samples() -> list[list[int]]:
    """Every kind of row, of different lengths."""
    return [
        [*prompt(5, 0), *words(4, 1), EOP],
        [*words(2, 2), MASK, *words(3, 3), SOP, *words(3, 4), EOP],
        [*words(1, 5), MASK, *words(2, 6), GMASK, SOP, *words(1, 7)],  # both: the answer stands at [gMASK]
        [*prompt(9, 8), *words(1, 9)],
        [GMASK, SOP, *words(6, 10)],
        [SOP, *words(3, 11)],  # no context
        [*words(3, 12), SOP, *words(3, 13)],  # no mask token
        words(4, 14),  # no sop
        [*prompt(3, 15), *words(2, 16), SOP, GMASK, MASK, *words(1, 17)],  # what is generated may hold anything
    ]


def padded(rows: Sequence[list[int]], *, left: bool = False) -> tuple[Tensor, Tensor]:
    """Ids and mask, (B, T)."""
    longest = max(map(len, rows))
    fill = [longest - len(row) for row in rows]
    ids = [[PAD] * n + row if left else row + [PAD] * n for n, row in zip(fill, rows, strict=True)]
    mask = [[0] * n + [1] * len(row) if left else [1] * len(row) + [0] * n for n, row in zip(fill, rows, strict=True)]
    return torch.tensor(ids), torch.tensor(mask)


def naive_positions(ids: list[int]) -> list[tuple[int, int]]:
    """Position and block position of each token of one sample."""
    if SOP not in ids:
        return [(0, at + 1) for at in range(len(ids))]
    length = ids.index(SOP)
    context = ids[:length]
    masked = next((context.index(token) for token in (GMASK, MASK) if token in context), max(length - 1, 0))
    return [(at, 0) if at < length else (masked, at - length + 1) for at in range(len(ids))]


def naive_logits(made: ChatGLMForCausalLM, ids: list[int]) -> Tensor:
    """Logits (T, V) of one sample, from the state dict and the formulas alone."""
    weights = {name: tensor.double() for name, tensor in made.state_dict().items()}
    size, heads = made.config.hidden_size, made.config.num_attention_heads
    positions = naive_positions(ids)
    states = [weights["transformer.word_embeddings.weight"][token] for token in ids]
    for layer in range(made.config.num_layers):
        prefix = f"transformer.layers.{layer}."
        part = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
        normed = [_norm(state, part, "input_layernorm") for state in states]
        attended = _attention(normed, part, positions, heads=heads, width=size // heads)
        states = [x * math.sqrt(56) + y for x, y in zip(normed, attended, strict=True)]
        normed = [_norm(state, part, "post_attention_layernorm") for state in states]
        states = [x * math.sqrt(56) + _feed_forward(x, part) for x in normed]
    last = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    return torch.stack([weights["lm_head.weight"] @ _norm(state, last, "final_layernorm") for state in states])


def _norm(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    centred = x - x.mean()
    return centred / (centred.pow(2).mean() + 1e-5).sqrt() * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def _feed_forward(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
    y = weights["mlp.dense_h_to_4h.weight"] @ x + weights["mlp.dense_h_to_4h.bias"]
    y = 0.5 * y * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
    return weights["mlp.dense_4h_to_h.weight"] @ y + weights["mlp.dense_4h_to_h.bias"]


def _attention(
    normed: list[Tensor], weights: dict[str, Tensor], positions: list[tuple[int, int]], *, heads: int, width: int
) -> list[Tensor]:
    name = "attention.query_key_value"
    fused = [(weights[f"{name}.weight"] @ x + weights[f"{name}.bias"]).view(heads, 3, width) for x in normed]
    out = [torch.zeros(heads, width, dtype=torch.float64) for _ in normed]
    for head in range(heads):
        keys = [_turned(qkv[head, 1], at) for qkv, at in zip(fused, positions, strict=True)]
        for t, qkv in enumerate(fused):
            query = _turned(qkv[head, 0], positions[t])
            seen = [s for s in range(len(fused)) if s <= t or positions[s][1] == 0]
            scores = torch.stack([query @ keys[s] / math.sqrt(width) for s in seen])
            shares = scores.exp() / scores.exp().sum()
            out[t][head] = sum(share * fused[s][head, 2] for share, s in zip(shares, seen, strict=True))
    return [weights["attention.dense.weight"] @ x.flatten() + weights["attention.dense.bias"] for x in out]


def _turned(vector: Tensor, at: tuple[int, int]) -> Tensor:
    result = vector.clone()
    quarter = len(vector) // 4
    for half in range(2):
        for i in range(quarter):
            frequency = torch.tensor(10000.0 ** (-i / quarter), dtype=torch.float16).item()
            angle = at[half] * frequency
            one, two = 2 * half * quarter + i, 2 * half * quarter + quarter + i
            result[one] = vector[one] * math.cos(angle) - vector[two] * math.sin(angle)
            result[two] = vector[two] * math.cos(angle) + vector[one] * math.sin(angle)
    return result
