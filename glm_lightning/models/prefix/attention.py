"""Put a prefix before a network's keys and values, through transformers' attention interface."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import pad
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from glm_lightning.models import cpu_attention, training_attention
from glm_lightning.models.prefix.encoder import PrefixEncoder
from glm_lightning.types import UserError

ATTENTION = {"sdpa": "sdpa_prefix", training_attention.NAME: "sdpa_prefix", "eager": "eager_prefix"}
"""The attention implementations that a prefix can be put before, and the names under which ours are registered."""

_ENCODER = "prefix_encoder"
_Answer = tuple[Tensor, Tensor | None]


class InFront(Protocol):
    """What a forward hands down to the attention functions as ``prefix``."""

    def before(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of ``layer`` with something in front."""


def attach(network: PreTrainedModel, encoder: PrefixEncoder) -> None:
    """Make ``network`` see the prefix of ``encoder``, which becomes a submodule of it, at every layer.

    The network stays the same object and its own weights stay as they are; `save_pretrained` leaves the prefix out.

    Raises:
        UserError: the network's attention implementation is none of `ATTENTION`.
    """
    implementation = network.config._attn_implementation
    if implementation not in ATTENTION:
        raise UserError(
            f"model.attention is {implementation!r}: a key/value prefix needs one of {', '.join(ATTENTION)}; "
            "give model.attention=sdpa, which uses flash kernels on a GPU"
        )
    decoder = network.base_model
    assert _ENCODER not in dict(decoder.named_children()), "there is a prefix already"
    decoder.add_module(_ENCODER, encoder)
    decoder.register_forward_pre_hook(_give_prefix, with_kwargs=True)
    _own_config(network)._attn_implementation = ATTENTION[implementation]
    names = [name for name in network.state_dict() if f"{_ENCODER}." in name]
    network._keys_to_ignore_on_save = {*(network._keys_to_ignore_on_save or ()), *names}


def _own_config(network: PreTrainedModel) -> PreTrainedConfig:
    """Give ``network`` a copy of its configuration: what it shares with other networks shall not change for them."""
    shared, own = network.config, copy.deepcopy(network.config)
    for module in network.modules():
        if vars(module).get("config") is shared:
            vars(module)["config"] = own
    return own


def encoder_of(network: PreTrainedModel) -> PrefixEncoder:
    """The encoder that `attach` gave to ``network``."""
    return cast(PrefixEncoder, network.base_model.get_submodule(_ENCODER))


def _give_prefix(decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Compute the prefix once a forward and hand it down; a prefix that the caller gives wins."""
    if "prefix" in kwargs:
        return args, kwargs
    encoder = cast(PrefixEncoder, decoder.get_submodule(_ENCODER))
    cache = kwargs.get("cache")
    continued = encoder.projected and cache is not None and bool(cache.get_seq_length() > 0)
    return args, kwargs | {"prefix": encoder(continued=continued) if encoder.enabled else None}


def _sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    prefix: InFront | None,
    **kwargs: Any,
) -> _Answer:
    """The scaled dot-product attention of torch, with the layer's prefix in front of keys and values.

    Without a mask transformers means causal attention over as many keys as queries. With a prefix in front that is
    the triangle whose diagonal ends at the lower right, which torch has flash and memory-efficient kernels for.
    """
    if prefix is None:
        return cast(_Answer, sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs))
    num_queries, packed = query.shape[2], kwargs.get("cu_seq_lens_q")
    causal = attention_mask is None and num_queries > 1 and _is_causal(module, kwargs)
    if causal:  # a static cache gives all its places, the empty ones behind
        key, value = key[:, :, :num_queries], value[:, :, :num_queries]
    key, value, attention_mask = _in_front(prefix, module, key, value, attention_mask)
    if causal or (packed is not None and _is_causal(module, kwargs)):
        # the triangle's own dispatch comes before autocast's, and wants one type
        query, key, value = (training_attention.as_autocast(states) for states in (query, key, value))
        if not kwargs.get("dropout") and cpu_attention.fits(query, key, value, packed):
            scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
            return cpu_attention.causal(query, key, value, scaling, packed), None
    if causal:
        attention_mask = causal_lower_right(num_queries, key.shape[2])
    return cast(_Answer, sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs))


def _eager(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    prefix: InFront | None,
    **kwargs: Any,
) -> _Answer:
    """The architecture's own written-out attention, with the layer's prefix in front of keys and values."""
    written = vars(sys.modules[type(module).__module__])
    own: Callable[..., _Answer] = written.get("eager_attention_forward") or written["eager_attention"]
    if prefix is not None:
        key, value, attention_mask = _in_front(prefix, module, key, value, attention_mask)
    return own(module, query, key, value, attention_mask, **kwargs)


def _in_front(
    prefix: InFront, module: nn.Module, key: Tensor, value: Tensor, attention_mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    num_keys = key.shape[2]
    key, value = prefix.before(cast(int, module.layer_idx), key, value)
    if attention_mask is not None:
        # every query sees the prefix: True in a boolean mask, nothing added by an additive one
        sees = True if attention_mask.dtype == torch.bool else 0.0
        attention_mask = pad(attention_mask, (key.shape[2] - num_keys, 0), value=sees)
    return key, value, attention_mask


def _is_causal(module: nn.Module, kwargs: dict[str, Any]) -> bool:
    given = kwargs.get("is_causal")
    return bool(module.is_causal if given is None else given)


AttentionInterface.register(ATTENTION["sdpa"], _sdpa)
AttentionMaskInterface.register(ATTENTION["sdpa"], sdpa_mask)
AttentionInterface.register(ATTENTION["eager"], _eager)
AttentionMaskInterface.register(ATTENTION["eager"], eager_mask)
