"""The network of ChatGLM-6B, with the official names of modules and tensors."""

from __future__ import annotations

from typing import Any, NoReturn, cast, final

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, slice_logits_to_keep
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from glm_lightning.models.chatglm.configuration import ChatGLMConfig
from glm_lightning.models.chatglm.positions import attention_mask_of, positions, rotary_table, rotate
from glm_lightning.types import UserError

RESIDUAL_SCALE = (2 * 28) ** 0.5
"""What the normalised input of a sublayer is multiplied with before the sublayer's output is added to it.

The 28 are not `num_layers`: the official code never hands its blocks the number of layers, so that their default, that
of the release, holds whatever the configuration says.
"""


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Attention written out: query (B, heads, T, head_dim) to output (B, T, heads, head_dim) and weights.

    ``attention_mask`` (B, 1, T, keys) is added to the scores, or true where they count; None where all do. The softmax
    is at least float32, as in the official code.
    """
    # Scaled before the product, which in float16 would else overflow.
    scores = (query * scaling) @ key.transpose(2, 3)
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        attention_mask = torch.zeros_like(scores).masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


@final
class ChatGLMAttention(nn.Module):
    """Attention whose query, key and value lie side by side within each head of one projection."""

    is_causal = False  # what is seen is in the mask, always

    def __init__(self, config: ChatGLMConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.num_key_value_groups = 1
        self.scaling = self.head_dim**-0.5
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_states: Tensor,
        *,
        rotary: tuple[Tensor, Tensor],
        attention_mask: Tensor | None,
        cache: Cache | None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """hidden_states (B, T, H) to (B, T, H), and the weights where the implementation gives them."""
        fused = self.query_key_value(hidden_states).unflatten(-1, (-1, 3 * self.head_dim)).transpose(1, 2)
        query, key, value = fused.chunk(3, dim=-1)
        query, key = rotate(query, *rotary), rotate(key, *rotary)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        output, weights = attend(self, query, key, value, attention_mask, scaling=self.scaling, **kwargs)
        return self.dense(output.flatten(-2)), weights


@final
class ChatGLMMLP(nn.Module):
    """Two projections with the tanh form of GELU between them."""

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, config.inner_hidden_size)
        self.dense_4h_to_h = nn.Linear(config.inner_hidden_size, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """hidden_states (B, T, H) to (B, T, H)."""
        inner = nn.functional.gelu(self.dense_h_to_4h(hidden_states), approximate="tanh")
        return cast(Tensor, self.dense_4h_to_h(inner))


@final
class ChatGLMBlock(GradientCheckpointingLayer):
    """A layer: each sublayer's residual is its normalised input, scaled."""

    def __init__(self, config: ChatGLMConfig, layer_idx: int) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.attention = ChatGLMAttention(config, layer_idx)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.mlp = ChatGLMMLP(config)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """hidden_states (B, T, H) to (B, T, H); ``kwargs`` are those of `ChatGLMAttention.forward`."""
        normed = self.input_layernorm(hidden_states)
        hidden_states = normed * RESIDUAL_SCALE + self.attention(normed, **kwargs)[0]
        normed = self.post_attention_layernorm(hidden_states)
        return cast(Tensor, normed * RESIDUAL_SCALE + self.mlp(normed))


class ChatGLMPreTrainedModel(PreTrainedModel):
    """What transformers asks of every network of a family."""

    config: ChatGLMConfig
    config_class = ChatGLMConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _input_embed_layer = "word_embeddings"
    _no_split_modules = ["ChatGLMBlock"]  # noqa: RUF012
    _skip_keys_device_placement = ["cache"]  # noqa: RUF012
    # Stored by the official code and never read by it: it makes its own, and so does `positions`.
    _keys_to_ignore_on_load_unexpected = [r"rotary_emb\.inv_freq$"]  # noqa: RUF012
    _supports_sdpa = True
    _can_record_outputs = {"hidden_states": ChatGLMBlock, "attentions": ChatGLMAttention}  # noqa: RUF012

    def _flash_attn_can_dispatch(self, flash_attn_version: int, is_init_check: bool = False) -> NoReturn:
        raise UserError(
            f"model.attention is 'flash_attention_{flash_attn_version}': ChatGLM-6B sees its prompt in both directions "
            "and its answer in one, a mask that flash attention does not take; give sdpa"
        )


@final
class ChatGLMModel(ChatGLMPreTrainedModel):
    """The network without its head: ids to hidden states."""

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__(config)
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([ChatGLMBlock(config, index) for index in range(config.num_layers)])
        self.final_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.gradient_checkpointing = False
        self.post_init()  # type: ignore[no-untyped-call]

    @merge_with_config_defaults  # type: ignore[untyped-decorator]
    @capture_outputs  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states (B, T, H) of input_ids (B, T), or of inputs_embeds (B, T, H) with position_ids.

        position_ids (B, 2, T) are `positions` of input_ids if not given. Samples that share a row are told apart by
        positions that begin again, given as these or as (B, T), counted from 0 in each sample. attention_mask is
        (B, keys) with 0 on padding, or (B, 1, T, keys) in transformers' convention.

        Raises:
            ValueError: not exactly one of input_ids and inputs_embeds is given, or positions are wanted that only the
                ids of the whole row tell.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("input_ids, inputs_embeds: give exactly one of them")
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        if position_ids is None or position_ids.ndim == 2:
            position_ids = self._positions(input_ids, attention_mask, position_ids, cache)
        if inputs_embeds is None:
            inputs_embeds = self.word_embeddings(input_ids)
        mask = attention_mask_of(self.config, inputs_embeds, attention_mask, cache, position_ids)
        head_dim = self.config.hidden_size // self.config.num_attention_heads
        rotary = rotary_table(position_ids, head_dim=head_dim, dtype=inputs_embeds.dtype)
        hidden_states = inputs_embeds
        for layer in self.layers:
            hidden_states = layer(hidden_states, rotary=rotary, attention_mask=mask, cache=cache, **kwargs)
        return BaseModelOutputWithPast(last_hidden_state=self.final_layernorm(hidden_states), cache=cache)

    def _positions(
        self, input_ids: Tensor | None, attention_mask: Tensor | None, places: Tensor | None, cache: Cache | None
    ) -> Tensor:
        if input_ids is None or (cache is not None and cache.get_seq_length() > 0):
            raise ValueError(
                "position_ids: they follow from the ids of the whole row (where the context ends), which embeddings "
                "and the ids behind a cache do not tell; give position_ids of shape (batch, 2, tokens)"
            )
        padding = attention_mask if attention_mask is not None and attention_mask.ndim == 2 else None
        return positions(input_ids, padding, self.config, places=places)


@final
class ChatGLMForCausalLM(ChatGLMPreTrainedModel, GenerationMixin):
    """ChatGLM-6B with its head, which shares the embeddings' weight."""

    _tied_weights_keys = {"lm_head.weight": "transformer.word_embeddings.weight"}  # noqa: RUF012

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__(config)
        self.transformer = ChatGLMModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (B, T, V), of the last ``logits_to_keep`` positions only unless it is 0; inputs as in `ChatGLMModel`.

        ``labels`` (B, T) are not shifted, -100 where nothing is learned; the loss is their mean in nats.
        """
        outputs = self.transformer(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            cache=outputs.cache,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        cache: Cache | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """One step's inputs, with positions from the ids of the whole row: prompt and what was generated.

        Raises:
            ValueError: ``input_ids`` lack the beginning, which is in the cache, or positions were given.
        """
        past_length = 0 if cache is None else int(cache.get_seq_length())
        new_length = input_ids.shape[1] if next_sequence_length is None else next_sequence_length
        if cache is not None and past_length + new_length != input_ids.shape[1]:
            raise ValueError(
                "input_ids: positions follow from the ids of the whole row; give all ids together with a cache, and "
                "do not set prefill_chunk_size: a prompt that is seen in both directions cannot be cut"
            )
        if kwargs.pop("position_ids", None) is not None:
            raise ValueError("position_ids: generation makes its own; give input_ids and attention_mask")
        inputs: dict[str, Any] = cast(Any, super()).prepare_inputs_for_generation(
            input_ids,
            next_sequence_length=next_sequence_length,
            cache=cache,
            attention_mask=attention_mask,
            position_ids=positions(input_ids, attention_mask, self.config),
            **kwargs,
        )
        return inputs

    def _prepare_position_ids_for_generation(self, inputs_tensor: Tensor, model_kwargs: dict[str, Any]) -> None:
        """Nothing that transformers would then count on by one: `prepare_inputs_for_generation` makes them."""

    @staticmethod
    def create_masks_for_generate(
        config: ChatGLMConfig,
        inputs_embeds: Tensor,
        attention_mask: Tensor | None,
        cache: Cache | None,
        position_ids: Tensor,
        **kwargs: Any,
    ) -> Tensor | None:
        """The mask for a cache of fixed size, which transformers builds before the forward pass."""
        return attention_mask_of(config, inputs_embeds, attention_mask, cache, position_ids)
