"""Every yaml of conf/model, with the sizes of the real release, on the meta device: class, parameters, targets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from glm_lightning.methods.ingredients import Ingredients
from glm_lightning.methods.lora import LoRA
from glm_lightning.models import Source
from glm_lightning.models.releases import CONFIGS, name_of, published

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf" / "model"

# class, and the number of parameters: exact where it is published, else the billions of its model card; None where the
# sizes themselves are from hearsay
RELEASES: dict[str, tuple[str, int | float | None]] = {
    "chatglm_6b": ("ChatGLMForCausalLM", 6_173_286_400),
    "chatglm2_6b": ("GlmForCausalLM", 6_243_584_000),
    "chatglm2_6b_32k": ("GlmForCausalLM", 6_243_584_000),
    "chatglm3_6b": ("GlmForCausalLM", 6_243_584_000),
    "chatglm3_6b_base": ("GlmForCausalLM", 6_243_584_000),
    "chatglm3_6b_32k": ("GlmForCausalLM", 6_243_584_000),
    "glm_4_9b": ("GlmForCausalLM", 9_399_951_360),
    "glm_4_9b_chat": ("GlmForCausalLM", 9_399_951_360),
    "glm_4_9b_chat_1m": ("GlmForCausalLM", 9_483_857_920),
    "glm_4_9b_chat_hf": ("GlmForCausalLM", 9_399_951_360),
    "glm_4_9b_hf": ("GlmForCausalLM", 9_399_951_360),
    "glm_edge_1_5b_chat": ("GlmForCausalLM", None),
    "glm_edge_4b_chat": ("GlmForCausalLM", None),
    "glm_4_9b_0414": ("Glm4ForCausalLM", 9.4),
    "glm_z1_9b_0414": ("Glm4ForCausalLM", 9.4),
    "glm_4_32b_0414": ("Glm4ForCausalLM", 32.6),
    "glm_z1_32b_0414": ("Glm4ForCausalLM", 32.6),
    "glm_4_5": ("Glm4MoeForCausalLM", 355),
    "glm_4_5_air": ("Glm4MoeForCausalLM", 106),
    "glm_4_6": ("Glm4MoeForCausalLM", 355),
    "glm_4_7": ("Glm4MoeForCausalLM", 355),
    "glm_4_7_flash": ("Glm4MoeLiteForCausalLM", 30),
}


def test_every_release_is_here() -> None:
    assert (
        {file.stem for file in CONF.glob("*.yaml")} - {"local", "demo", "demo_student"}
        == RELEASES.keys()
        == CONFIGS.keys()
    )


@pytest.mark.parametrize("name", RELEASES)
def test_a_release_resolves(name: str, tmp_path: Path) -> None:
    raw, (network, parameters) = CONFIGS[name], RELEASES[name]
    (tmp_path / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    yaml: Any = OmegaConf.load(CONF / f"{name}.yaml")
    assert (ROOT / "glm_lightning" / "templates" / f"{yaml.template}.py").is_file()
    source = Source(path=str(tmp_path), template=yaml.template)
    assert type(source.skeleton).__name__ == network
    assert {p.device.type for p in source.skeleton.parameters()} == {"meta"}
    if isinstance(parameters, int) and parameters > 1000:
        assert source.num_parameters == parameters
    elif parameters is not None:
        # model cards count the layer that predicts a second token, which transformers leaves out
        assert source.num_parameters / 1e9 == pytest.approx(parameters, rel=0.04)
    by_name = published(Source(path=yaml.path))
    assert name_of(yaml.path) == name
    assert (type(by_name.skeleton), by_name.num_parameters) == (type(source.skeleton), source.num_parameters)
    assert by_name.stored_dtype == source.stored_dtype
    method = LoRA(Ingredients(None, None, None, None, seed=0, base=""))  # type: ignore[arg-type]
    method.check(source.skeleton)


@pytest.mark.parametrize("name", [name for name, raw in CONFIGS.items() if raw["model_type"] == "chatglm"])
def test_the_rotary_base_follows_the_ratio(name: str, tmp_path: Path) -> None:
    raw = CONFIGS[name]
    (tmp_path / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    config: Any = Source(path=str(tmp_path)).config
    if config.model_type == "glm":
        assert config.rope_parameters["rope_theta"] == 10000 * raw.get("rope_ratio", 1)
        assert config.max_position_embeddings == raw["seq_length"]
