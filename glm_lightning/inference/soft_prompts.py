"""Learned embeddings in front of a prompt, exact for every row of a padded batch.

PEFT puts them in front of the padding, so that their distance to the prompt depends on the longest row; and it drops
the positions that would say so.
"""

from __future__ import annotations

from typing import Any

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


def embedded(base: Any, soft: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Embeddings (B, T, H) of rows that are padded on the left, with ``soft`` in place of their first real ids."""
    embeddings: Tensor = base.get_input_embeddings()(input_ids).clone()
    for row, start in enumerate((attention_mask == 0).sum(dim=1).tolist()):
        embeddings[row, start : start + len(soft)] = soft
    return embeddings
