"""Learned embeddings in front of a prompt, exact for every row of a padded batch.

PEFT puts them in front of the padding, so that their distance to the prompt depends on the longest row; and it drops
the positions that would say so.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel


def soft_prompt(network: Any) -> Tensor | None:
    """The embeddings (P, H) that ``network`` has in front of each row; None if none, or if they are switched off."""
    if isinstance(network, PreTrainedModel) or network.active_peft_config.peft_type not in (
        "PROMPT_TUNING",
        "P_TUNING",
    ):
        return None
    switched_off = network.forward == network.base_model.forward
    return None if switched_off else network.get_prompt(batch_size=1)[0]


def embedded(base: Any, soft: Tensor, prompts: list[list[int]], *, pad_id: int) -> dict[str, Tensor]:
    """Embeddings (B, P + T, H) and mask (B, P + T) of ``prompts``, padded in front of the soft tokens."""
    longest = max(map(len, prompts))
    padding = [longest - len(prompt) for prompt in prompts]
    filler = [pad_id] * len(soft)
    rows = [[pad_id] * pad + filler + prompt for pad, prompt in zip(padding, prompts, strict=True)]
    embeddings = base.get_input_embeddings()(torch.tensor(rows, device=base.device)).clone()
    mask = torch.ones(embeddings.shape[:2], dtype=torch.int64, device=base.device)
    for row, pad in enumerate(padding):
        embeddings[row, pad : pad + len(soft)] = soft
        mask[row, :pad] = 0
    return {"inputs_embeds": embeddings, "attention_mask": mask}
