"""The configuration of ChatGLM-6B, under the keys of its official config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast, final

from huggingface_hub.dataclasses import strict
from transformers import PretrainedConfig

from glm_lightning.models import families
from glm_lightning.types import UserError

NUM_IMAGE_TOKENS = 20_000
"""Ids of image tokens in front of the vocabulary of the first releases (spring of 2023), never used by the network."""

_OLD_VOCABULARY, _OLD_SOP = 150_528, 150_004
_NAMES = {"chatglm2": "ChatGLM2-6B", "chatglm3": "ChatGLM3-6B", "glm4": "GLM-4-9B", None: "ChatGLM2-6B or ChatGLM3-6B"}


@final
@strict
class ChatGLMConfig(PretrainedConfig):
    """Sizes and control tokens of a ChatGLM-6B; the defaults are those of the release.

    The fields have the official names, so that a saved config.json is an official one; `attribute_map` gives them
    the names that transformers asks for. The embeddings are tied, though no official file says so: the official code
    inherits it from transformers' default, and the released tensors are equal.

    Raises:
        UserError: the keys are those of a later generation, or positions are not two-dimensional.
    """

    model_type = "chatglm"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["cache"]
    attribute_map: ClassVar[dict[str, str]] = {
        "num_hidden_layers": "num_layers",
        "intermediate_size": "inner_hidden_size",
        "max_position_embeddings": "max_sequence_length",
        "layer_norm_eps": "layernorm_epsilon",
    }

    vocab_size: int = 130_528
    hidden_size: int = 4096
    num_layers: int = 28
    num_attention_heads: int = 32
    inner_hidden_size: int = 16_384
    layernorm_epsilon: float = 1e-5
    max_sequence_length: int = 2048
    position_encoding_2d: bool = True
    use_cache: bool = True
    tie_word_embeddings: bool = True
    bos_token_id: int = 130_004
    eos_token_id: int | list[int] | None = 130_005
    pad_token_id: int | None = 3
    mask_token_id: int = 130_000
    gmask_token_id: int = 130_001

    def __post_init__(self, **kwargs: Any) -> None:
        """Take what is no field, too; refuse what is no ChatGLM-6B."""
        if "padded_vocab_size" in kwargs:
            known = {"eos_token_id": self.eos_token_id, "transformers_version": self.transformers_version}
            name = _NAMES[families.generation({"model_type": self.model_type, **known, **kwargs})]
            raise UserError(
                f"config.json: it says chatglm, as those of four generations do, but padded_vocab_size is a key of "
                f"{name}, whose network is transformers' GlmForCausalLM and not that of ChatGLM-6B; "
                "load it by glm_lightning.load"
            )
        if not self.position_encoding_2d:
            raise UserError(
                "config.json: position_encoding_2d is false, but every ChatGLM-6B that was released has "
                "two-dimensional positions; give one of those"
            )
        # It asks for the official code, which is never run: saved again, it would point at files that are not there.
        kwargs.pop("auto_map", None)
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """From a config.json; one of the old layout becomes one of the new (see `is_old`)."""
        return super().from_dict(_renumbered(config_dict), **kwargs)

    def to_diff_dict(self) -> dict[str, Any]:
        """What config.json holds: the type of the weights under the name that the official code looks for."""
        written = super().to_diff_dict()
        return {"torch_dtype" if key == "dtype" else key: value for key, value in written.items()}


def config(raw: Mapping[str, Any]) -> ChatGLMConfig:
    """The configuration of an official config.json as it stands, of the old layout or the new."""
    return cast(ChatGLMConfig, ChatGLMConfig.from_dict(dict(raw)))


def is_old(raw: Mapping[str, Any]) -> bool:
    """Whether ids count 20,000 image tokens in front of the vocabulary, and the weights hold their rows.

    The vocabulary's size alone would not do: embeddings can be resized.
    """
    return raw.get("vocab_size") == _OLD_VOCABULARY and raw.get("bos_token_id") == _OLD_SOP


def _renumbered(raw: dict[str, Any]) -> dict[str, Any]:
    if not is_old(raw):
        return raw
    ids = {
        key: value - NUM_IMAGE_TOKENS
        for key, value in raw.items()
        # Some of the old files number padding as the new ones do.
        if key.endswith("_token_id") and isinstance(value, int) and value >= NUM_IMAGE_TOKENS
    }
    return {**raw, **ids, "vocab_size": _OLD_VOCABULARY - NUM_IMAGE_TOKENS}
