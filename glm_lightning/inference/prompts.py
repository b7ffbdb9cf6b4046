"""Segments to the ids that a model is prompted with."""

from __future__ import annotations

from collections.abc import Sequence

from glm_lightning.tokenizers import Tokenizer
from glm_lightning.types import Segment


def prompt_ids(prompts: Sequence[Sequence[Segment]], tokenizer: Tokenizer) -> list[list[int]]:
    """Ids of each prompt: control tokens by name, every text as data. All texts are encoded in one call."""
    texts = iter(tokenizer.encode([s.text for prompt in prompts for s in prompt if s.control is None]))
    return [
        [i for s in prompt for i in (next(texts) if s.control is None else [tokenizer.control_id(s.control)])]
        for prompt in prompts
    ]
