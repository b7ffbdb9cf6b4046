"""Where tokens stand and what they see: the two-dimensional positions of GLM, and the mask that follows from them.

A sample is a context, which sees itself in both directions, and an answer, which begins with the token sop (the
config's ``bos_token_id``) and sees what stands before. The first position counts the context and stays, over the
answer, where the mask token is that the answer fills ([gMASK] or [MASK]); the second, the block position, is 0 over
the context and counts the answer from 1 (Du et al. 2022, arXiv:2103.10360, section 2.1).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask

if TYPE_CHECKING:
    from glm_lightning.models.chatglm.configuration import ChatGLMConfig

_BASE = 10_000.0


def positions(
    input_ids: Tensor, attention_mask: Tensor | None, config: ChatGLMConfig, *, places: Tensor | None = None
) -> Tensor:
    """Position and block position of every token, (B, 2, T).

    input_ids (B, T); attention_mask (B, T), 0 on padding, None where padding is only on the right. ``places`` (B, T)
    count the tokens of each sample from 0; None where a row holds one sample. The context ends before the first sop.
    The answer stands at the first [gMASK] of the context, else at its first [MASK], else at its end. A sample without
    sop is all answer: no token of it sees a later one. Padding on the left of a row's one sample gets (0, 0).
    """
    real = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    if places is None:
        samples, places = torch.zeros_like(input_ids), real.cumsum(-1) - 1
    else:
        places = places.expand_as(input_ids)
        samples = pad(places.diff() != 1, (1, 0)).cumsum(-1)
    num_context = _first(real & (input_ids == config.bos_token_id), places, samples, default=0)
    in_context = places < num_context
    masked = (num_context - 1).clamp(min=0)
    for token in (config.mask_token_id, config.gmask_token_id):
        masked = _first(real & in_context & (input_ids == token), places, samples, default=masked)
    position = torch.where(in_context, places.clamp(min=0), masked)
    block = torch.where(in_context, 0, places - num_context + 1)
    return torch.stack([position, block], dim=1)


def _first(found: Tensor, places: Tensor, samples: Tensor, *, default: Tensor | int) -> Tensor:
    """For each token (B, T), the first place in its sample where something was found, else the default."""
    none = torch.iinfo(places.dtype).max
    least = torch.full_like(places, none).scatter_reduce(1, samples, places.masked_fill(~found, none), "amin")
    first = least.gather(1, samples)
    return torch.where(first == none, default, first)


def attention_mask_of(
    config: ChatGLMConfig,
    inputs_embeds: Tensor,
    attention_mask: Tensor | None,
    cache: Cache | None,
    position_ids: Tensor,
) -> Tensor | None:
    """What each token sees, in the form that the attention implementation takes; a mask of four dimensions as it is.

    inputs_embeds (B, T, H), attention_mask (B, keys) with 0 on padding, or None; position_ids (B, 2, T) may hold
    several samples a row, which do not see each other. Behind a cache there is only answer, and None is common.

    Raises:
        ValueError: tokens of a context stand behind a cache; nothing has registered a mask for the implementation.
    """
    num_tokens = inputs_embeds.shape[1]
    if cache is not None and cache.get_seq_length() > 0:
        if num_tokens > 1 and bool((position_ids[:, 1] == 0).any()):
            raise ValueError(
                "position_ids: a context sees itself in both directions, so it cannot be continued behind a cache; "
                "give all of it to one forward pass"
            )
        seen = create_causal_mask(config, inputs_embeds, attention_mask, cache)
        return cast("Tensor | None", seen)
    mask = create_causal_mask(
        config,
        inputs_embeds,
        attention_mask,
        cache,
        or_mask_function=_in_context(position_ids[:, 1] == 0),
        and_mask_function=_in_same_sample(_samples(position_ids)),
    )
    if mask is None:
        raise ValueError(
            f"attn_implementation {config._attn_implementation!r}: no mask is registered for it in transformers' "
            "AttentionMaskInterface, and without one the context would be attended causally"
        )
    return cast(Tensor, mask)


def _samples(position_ids: Tensor) -> Tensor:
    """Number of the sample that each token is of, (B, T): one begins where positions do not go on."""
    position, block = position_ids.unbind(1)
    context_goes_on = (block[:, 1:] == 0) & (block[:, :-1] == 0) & (position[:, 1:] == position[:, :-1] + 1)
    begins = (block[:, 1:] <= block[:, :-1]) & ~context_goes_on
    return pad(begins, (1, 0)).cumsum(-1)


# Keys beyond the tokens are the empty places of a cache of fixed size, which causality hides.
def _in_context(context: Tensor) -> Callable[..., Tensor]:
    length = context.shape[1]
    return lambda row, head, query, key: context[row, key.clamp(max=length - 1)] & (key < length)


def _in_same_sample(samples: Tensor) -> Callable[..., Tensor]:
    last = samples.shape[1] - 1
    return lambda row, head, query, key: samples[row, query] == samples[row, key.clamp(max=last)]


def rotary_table(position_ids: Tensor, *, head_dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine (B, 1, T, 2, head_dim / 2): the halves of a head turn by position and by block position.

    Angles are float32, but float16 in a float16 network: the official code computes them in the type that the network
    is held in, and was trained in float16. The network can be held in any other type without them losing digits.
    """
    precision = dtype if dtype == torch.float16 else torch.promote_types(dtype, torch.float32)
    frequencies = inverse_frequencies(head_dim, device=position_ids.device).to(precision)
    angles = position_ids.transpose(1, 2)[:, None, :, :, None].to(precision) * frequencies
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def inverse_frequencies(head_dim: int, *, device: torch.device | None = None) -> Tensor:
    """Frequencies of one half of a head (head_dim / 4), float16 as in the official code: it rounds them, always."""
    width = head_dim // 2
    exponents = torch.arange(0, width, 2, device=device, dtype=torch.float32) / width
    return (1.0 / _BASE**exponents).half()


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn queries or keys (B, heads, T, head_dim); of each half, the first half pairs with the second."""
    halves = states.unflatten(-1, (2, -1))
    first, second = halves.chunk(2, dim=-1)
    turned = halves * cos + torch.cat([-second, first], dim=-1) * sin
    return cast(Tensor, turned.flatten(-2).to(states.dtype))
