"""Which generation a config.json is of, by what it holds: all early ones say ``chatglm``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from packaging.version import InvalidVersion, Version

from glm_lightning.types import UserError

Generation = Literal["chatglm", "chatglm2", "chatglm3", "glm4"]
"""A generation whose official folders ask for code of their own."""

_NATIVE = {
    "chatglm": "THUDM/chatglm-6b",
    "chatglm2": "THUDM/chatglm2-6b",
    "chatglm3": "THUDM/chatglm3-6b",
    "glm4": "zai-org/glm-4-9b-chat",
}


def is_official(raw: Mapping[str, Any]) -> bool:
    """Whether the weights lie in the layout of ChatGLM2, ChatGLM3 and GLM-4-9B (`glm_lightning.models.official`)."""
    return raw.get("model_type") == "chatglm" and "padded_vocab_size" in raw


def is_chatglm_6b(raw: Mapping[str, Any]) -> bool:
    """Whether it is ChatGLM-6B (`glm_lightning.models.chatglm`)."""
    return raw.get("model_type") == "chatglm" and not raw.keys().isdisjoint(
        ("position_encoding_2d", "inner_hidden_size")
    )


def layout(raw: Mapping[str, Any]) -> Any:
    """The module that reads and writes an official layout; None for folders in transformers' own.

    Such a module has ``config(raw)`` and back ``raw_config(config, original=raw)``, ``READER`` (whose
    ``from_pretrained`` understands the files), ``native(network)``, and ``constants(config)``: what files hold besides.
    """
    if is_official(raw):
        from glm_lightning.models import official

        return official
    if is_chatglm_6b(raw):
        from glm_lightning.models import chatglm

        return chatglm
    return None


def generation(raw: Mapping[str, Any]) -> Generation | None:
    """The generation of an official folder; None for all others, and where ChatGLM2 cannot be told from ChatGLM3.

    The two share their keys and their vocabulary. The name under which a configuration was saved tells them apart, or
    else the release of transformers that wrote it: 4.27 for ChatGLM2, 4.30 for ChatGLM3.
    """
    if is_chatglm_6b(raw):
        return "chatglm"
    if not is_official(raw):
        return None
    if raw["padded_vocab_size"] > 100_000 or len(_as_list(raw.get("eos_token_id"))) > 1:
        return "glm4"
    name = str(raw.get("_name_or_path", "")).lower()
    for known in ("chatglm2", "chatglm3"):
        if known in name:
            return known
    try:
        wrote = Version(str(raw.get("transformers_version")))
    except InvalidVersion:
        return None
    return "chatglm2" if wrote < Version("4.30") else "chatglm3"


def refuse_unknown(raw: Mapping[str, Any], *, path: str) -> None:
    """Raise `UserError` for releases that are quantised already, and for kinds of ChatGLM that are no text model."""
    bits = raw.get("quantization_bit") or 0
    if bits:
        full = _NATIVE.get(generation(raw) or "", "the full-precision release")
        raise UserError(
            f"model.path is {path!r}: it was quantised to {bits} bits by its makers, in a format of their own that can "
            f"be neither read nor trained here; give the full weights ({full}) with quantize={_same(bits)}"
        )
    if "vision_config" in raw and raw.get("model_type") == "chatglm":
        raise UserError(
            f"model.path is {path!r}: it is a GLM with a vision part, and only text models are trained here; "
            f"give {_NATIVE['glm4']}"
        )
    if raw.get("model_type") == "chatglm" and not (is_official(raw) or is_chatglm_6b(raw)):
        raise UserError(
            f"model.path is {path!r}: its config.json says chatglm, but has neither the keys of ChatGLM-6B "
            "(inner_hidden_size) nor those of its successors (padded_vocab_size); give an official release"
        )


def _same(bits: int) -> str:
    return "nf4" if bits <= 4 else "int8"


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
