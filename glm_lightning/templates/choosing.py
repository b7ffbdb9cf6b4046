"""Which generation's template belongs to a model, by what tells the generations apart."""

from __future__ import annotations

from collections.abc import Mapping

from glm_lightning.types import UserError

_ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
_EDGE_USER = 59253
"""Id of `<|user|>` in GLM-Edge's vocabulary, whose tokens have GLM-4's names (official fine-tuning script)."""


def choose(
    *, model_type: str, controls: Mapping[str, int], chat_template: str | None, generation: str | None = None
) -> str:
    """The name of a template.

    Args:
        model_type: as transformers' configuration says: ``chatglm``, ``glm``, ``glm4``, ``glm4_moe``...
        controls: control tokens of the tokenizer, and their ids.
        chat_template: the tokenizer's own.
        generation: what the official configuration says where it says it: ``chatglm``, ``chatglm2``, ``chatglm3``,
            ``glm4``.

    Raises:
        UserError: nothing fits, or several do; the message lists them.
    """
    if generation:
        return generation
    own = chat_template or ""
    candidates = _candidates(model_type, controls, own)
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise UserError(
            f"template: auto cannot tell for model type {model_type!r} which of {', '.join(candidates)} it is: neither "
            "configuration nor tokenizer says. Set template to one of them"
        )
    if own:
        return "jinja"
    raise UserError(
        f"template: auto finds none for model type {model_type!r}: the tokenizer has neither the control tokens of a "
        "GLM generation nor a chat template of its own. Set template to a name, or put a chat_template.jinja into the "
        "model's folder"
    )


def _candidates(model_type: str, controls: Mapping[str, int], own: str) -> tuple[str, ...]:
    """The templates that may belong to it; none where only its own will do."""
    roles = all(name in controls for name in _ROLES)
    match model_type:
        case "chatglm":
            return ("chatglm",) if "<eop>" in controls and "[gMASK]" in controls else ()
        case "glm":
            return _glm(controls, roles=roles)
        case "glm4" if roles:
            return _told_apart(own, {"glm_z1": "</think>" in own, "glm4_0414": "</think>" not in own})
        case "glm4_moe" if roles:
            tags = "<tool_call>" in own and "</think>" in own
            return _told_apart(own, {"glm4_5": tags and "/nothink" in own, "glm4_7": tags and "/nothink" not in own})
        case "glm4_moe_lite" if roles:
            return ("glm4_7",)
    return ()


def _glm(controls: Mapping[str, int], *, roles: bool) -> tuple[str, ...]:
    if "sop" in controls:
        # one file of pieces for both: the names of the role tokens are put beside it
        return ("chatglm2", "chatglm3") if roles else ("chatglm2",)
    if not roles:
        return ()
    return ("glm_edge",) if controls["<|user|>"] == _EDGE_USER else ("glm4",) if "<sop>" in controls else ()


def _told_apart(own: str, fits: Mapping[str, bool]) -> tuple[str, ...]:
    """Those that the tokenizer's own template fits; all if it has none."""
    return tuple(name for name, fit in fits.items() if fit or not own)
