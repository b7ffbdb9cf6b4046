"""A tiny network, and pairs of answers as ids."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from transformers import GlmConfig, GlmForCausalLM

from glm_lightning.data.module import _MicroBatches
from glm_lightning.data.plan import MicroBatch
from glm_lightning.types import IGNORE, Batch, Sample

VOCABULARY, PAD = 61, 0
PAIRS = [
    ([3, 4, 5, 6], [7, 8, 1], [9, 10, 11, 12, 1]),
    ([13, 14], [15, 16, 17, 18, 19, 1], [20, 1]),
    ([21, 22, 23], [24, 25, 1], [24, 26, 1]),
]
"""Prompt, chosen answer and rejected answer, with the token that ends it."""


@cache
def _network(seed, vocabulary):
    torch.manual_seed(seed)
    config = GlmConfig(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, pad_token_id=PAD, eos_token_id=1, attention_bias=True,
    )  # fmt: skip
    made = GlmForCausalLM(config)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.2)
    return made.state_dict(), config


def network(*, seed, dtype=torch.float64, vocabulary=VOCABULARY):
    state, config = _network(seed, vocabulary)
    made = GlmForCausalLM(config)
    made.load_state_dict(state)
    return made.to(dtype)


class Rows:
    """Samples as a data set has them."""

    given = None

    def __init__(self, samples: list[Sample]) -> None:
        self._samples = samples
        self.indices = np.arange(len(samples))

    def sample(self, index: int) -> Sample:
        return self._samples[index]


def sample_of(pair) -> Sample:
    prompt, chosen, rejected = pair
    ids = [*prompt, *chosen, *prompt, *rejected]
    labels = [*[IGNORE] * len(prompt), *chosen, *[IGNORE] * len(prompt), *rejected]
    return Sample(ids, labels, num_chosen=len(prompt) + len(chosen))


def batch_of(pairs, *, packed: bool = False) -> Batch:
    """All pairs in one micro-batch: a row for each sequence, or one row for all; a filler where there is no pair."""
    rows = Rows([sample_of(pair) for pair in pairs])
    numbers = range(len(pairs))
    groups = (tuple(numbers),) if packed and pairs else tuple((number,) for number in numbers)
    made = _MicroBatches(rows, pad_id=PAD, pad_to_multiple=8, packed=packed)
    return made[MicroBatch(groups, len(pairs) or 1)]
