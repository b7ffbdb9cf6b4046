"""Whether a tokenizer belongs to a network: found out before a weight is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from glm_lightning.tokenizers.base import Tokenizer

_IMAGE_TOKENS = 20_000
"""The first releases of ChatGLM-6B had as many ids of images in front of all others: 150,528 instead of 130,528."""


def check(tokenizer: Tokenizer, config: Any) -> list[str]:
    """What is wrong between a tokenizer and the configuration of a network; nothing where they belong together.

    ``config`` is a `PretrainedConfig`, whose embedding must have a row for each id. In the GLM family the ids of its
    control tokens must be the tokenizer's, too; configurations of others often name ids that nothing uses.
    """
    text = config.get_text_config()
    settings = text.to_dict()
    rows = settings["vocab_size"]
    problems = []
    if tokenizer.vocab_size > rows:
        problems.append(f"the tokenizer has {tokenizer.vocab_size} ids, the embedding {rows} rows")
    if "[gMASK]" in tokenizer.controls:
        if settings.get("model_type") == "glm4_moe_lite" and text.bos_token_id == type(text)().bos_token_id:
            settings["bos_token_id"] = None  # the class of GLM-4.7-Flash names one (0), its files do not
        problems += [*_moved(tokenizer.controls, settings), *_unknown(tokenizer.controls, settings)]
    return problems


def _moved(controls: Mapping[str, int], settings: Mapping[str, Any]) -> Iterator[str]:
    for key, name in (("gmask_token_id", "[gMASK]"), ("mask_token_id", "[MASK]")):
        there, ours = settings.get(key), controls.get(name)
        if there is not None and there != ours:
            yield f"{key} is {there} in the configuration, {name} is {ours} in the tokenizer{_hint(there, controls)}"


def _unknown(controls: Mapping[str, int], settings: Mapping[str, Any]) -> Iterator[str]:
    ids = set(controls.values())
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = settings.get(key)
        for there in value if isinstance(value, list) else [] if value is None else [value]:
            if there not in ids:
                own = ", ".join(f"{name} {i}" for name, i in controls.items())
                yield (
                    f"{key} is {there} in the configuration, which is no control token of the tokenizer "
                    f"({own}){_hint(there, controls)}"
                )


def _hint(there: int, controls: Mapping[str, int]) -> str:
    if there - _IMAGE_TOKENS not in controls.values():
        return ""
    return f": ids of the first releases of ChatGLM-6B, {_IMAGE_TOKENS} higher; take config.json of the present release"
