from __future__ import annotations

import pytest

from glm_lightning.templates.choosing import choose
from glm_lightning.types import UserError

ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
V1 = ("[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>")
V2 = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop", "</s>")
V4 = ("<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", *ROLES)
PLAIN = "[gMASK]<sop>{{ messages }}"
Z1 = "{{ content.split('</think>')[-1] }}"
MOE_5 = "<tool_call> </think> /nothink"
MOE_7 = "<tool_call> </think>"


def numbered(names: tuple[str, ...], first: int = 100) -> dict[str, int]:
    return {name: first + i for i, name in enumerate(names)}


@pytest.mark.parametrize(
    ("model_type", "controls", "own", "generation", "expected"),
    [
        ("chatglm", V1, None, None, "chatglm"),
        ("glm", V2, None, None, "chatglm2"),
        ("glm", (*V2, *ROLES), None, "chatglm2", "chatglm2"),
        ("glm", (*V2, *ROLES), None, "chatglm3", "chatglm3"),
        ("glm", (*V2, *ROLES), "{{ }}", "chatglm3", "chatglm3"),
        ("glm", V4, None, None, "glm4"),
        ("glm", V4, PLAIN, None, "glm4"),
        ("glm", V4, PLAIN, "glm4", "glm4"),
        ("glm4", V4, PLAIN, None, "glm4_0414"),
        ("glm4", V4, Z1, None, "glm_z1"),
        ("glm4_moe", V4, MOE_5, None, "glm4_5"),
        ("glm4_moe", V4, MOE_7, None, "glm4_7"),
        ("glm4_moe", V4, PLAIN, None, "jinja"),
        ("glm4_moe_lite", V4, None, None, "glm4_7"),
        ("glm", ("<|im_end|>",), PLAIN, None, "jinja"),
        ("llama", V4, PLAIN, None, "jinja"),
        ("qwen3", (), PLAIN, None, "jinja"),
    ],
)
def test_what_tells_the_generations_apart(
    model_type: str, controls: tuple[str, ...], own: str | None, generation: str | None, expected: str
) -> None:
    named = numbered(controls)
    assert choose(model_type=model_type, controls=named, chat_template=own, generation=generation) == expected


def test_edge_has_the_names_of_glm4_and_ids_of_its_own() -> None:
    controls = numbered(V4, first=59246)
    assert controls["<|user|>"] == 59253
    assert choose(model_type="glm", controls=controls, chat_template=None) == "glm_edge"


@pytest.mark.parametrize(
    ("model_type", "controls", "listed"),
    [
        ("glm", (*V2, *ROLES), "chatglm2, chatglm3"),
        ("glm4", V4, "glm_z1, glm4_0414"),
        ("glm4_moe", V4, "glm4_5, glm4_7"),
    ],
)
def test_what_cannot_be_told_apart_is_listed(model_type: str, controls: tuple[str, ...], listed: str) -> None:
    with pytest.raises(UserError, match=f"which of {listed} it is"):
        choose(model_type=model_type, controls=numbered(controls), chat_template=None)


def test_the_template_in_chatglm3s_tokenizer_settings_decides_nothing() -> None:
    """It differs from the official code, and may lie beside ChatGLM2's weights as well."""
    with pytest.raises(UserError, match="chatglm2, chatglm3"):
        choose(model_type="glm", controls=numbered((*V2, *ROLES)), chat_template=PLAIN)


@pytest.mark.parametrize("model_type", ["llama", "glm", "chatglm", "glm4_moe"])
def test_nothing_to_go_by_is_said(model_type: str) -> None:
    with pytest.raises(UserError, match="neither the control tokens of a GLM generation nor a chat template"):
        choose(model_type=model_type, controls={}, chat_template=None)
