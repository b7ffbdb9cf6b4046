"""Pretrain the demo's network: a plain torch loop on the CPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from random import Random

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import GlmConfig, GlmForCausalLM

from glm_lightning.data.encoding import Encoder
from glm_lightning.demo.corpus import base_corpus
from glm_lightning.templates import Template
from glm_lightning.tokenizers import Tokenizer

_STOPS = ("<|endoftext|>", "<|user|>", "<|observation|>")
LONGEST = 1024
"""Positions of the network; its documents are far shorter."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How long and how fast the network learns."""

    steps: int = 3000
    rows: int = 32  # documents of a step
    peak_lr: float = 2e-3
    final_lr: float = 1e-5
    warmup: int = 100  # steps
    weight_decay: float = 0.05
    question_weight: float = 0.1  # weight of tokens that the assistant does not say
    seed: int = 1
    threads: int = 1  # sums depend on it, so it is fixed; two were no faster: the matrices are too small


def network(tokenizer: Tokenizer, *, seed: int) -> GlmForCausalLM:
    """A GLM of 3.4 million parameters with random weights; every width is a multiple of 64."""
    torch.manual_seed(seed)
    config = GlmConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        attention_bias=True,
        max_position_embeddings=LONGEST,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_id,
        eos_token_id=[tokenizer.control_id(name) for name in _STOPS],
    )
    return GlmForCausalLM(config)


def pretrain(
    model: GlmForCausalLM,
    tokenizer: Tokenizer,
    template: Template,
    recipe: Recipe,
    report: Callable[[float, int], None],
) -> None:
    """Train ``model`` in place; after every step ``report`` gets the loss (nats a token) and the step's tokens."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.peak_lr, betas=(0.9, 0.98), fused=True)
    model.train()
    for step, (input_ids, weights) in enumerate(islice(_batches(tokenizer, template, recipe), recipe.steps)):
        for group in optimizer.param_groups:
            group["lr"] = _lr(step, recipe)
        with torch.autocast("cpu", torch.bfloat16):
            loss = _loss(model, input_ids, weights)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        report(loss.item(), int((weights > 0).sum()))
    model.eval()


def _lr(step: int, recipe: Recipe) -> float:
    if step < recipe.warmup:
        return recipe.peak_lr * (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.final_lr + (recipe.peak_lr - recipe.final_lr) * (1 + math.cos(math.pi * done)) / 2


def _loss(model: GlmForCausalLM, input_ids: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean over the tokens (B, T) of their cross-entropy.

    All positions go through the head: picking some would give every step a shape of its own, and the CPU builds its
    bf16 kernels anew for each shape.
    """
    logits = model(input_ids=input_ids, use_cache=False).logits[:, :-1]
    losses = F.cross_entropy(logits.float().flatten(0, 1), input_ids[:, 1:].flatten(), reduction="none")
    kept = weights[:, 1:].flatten()
    return (losses * kept).sum() / kept.sum()


def _batches(tokenizer: Tokenizer, template: Template, recipe: Recipe) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches without end of documents of like length, padded to few widths: each new shape costs the CPU seconds."""
    documents, random = base_corpus(recipe.seed), Random(recipe.seed)
    encoder = Encoder(tokenizer=tokenizer, template=template, max_length=LONGEST)
    while True:
        rows = [
            [(i, 1.0 if learn else recipe.question_weight) for i, learn in zip(row.input_ids, row.learned, strict=True)]
            for row in encoder.encode(list(islice(documents, 64 * recipe.rows)))
        ]
        rows.sort(key=len)
        chunks = [rows[i : i + recipe.rows] for i in range(0, len(rows), recipe.rows)]
        random.shuffle(chunks)
        yield from (_pad(chunk, tokenizer.pad_id) for chunk in chunks)


def _pad(rows: list[list[tuple[int, float]]], pad_id: int) -> tuple[Tensor, Tensor]:
    width = -(-max(map(len, rows)) // 32) * 32
    padded = [row + [(pad_id, 0.0)] * (width - len(row)) for row in rows]
    input_ids = torch.tensor([[token for token, _ in row] for row in padded])
    return input_ids, torch.tensor([[weight for _, weight in row] for row in padded])
