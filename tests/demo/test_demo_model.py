from __future__ import annotations

import json
import subprocess
import sys
from itertools import islice
from pathlib import Path
from random import Random

import pytest
import torch
from rich.console import Console
from transformers import GenerationConfig, GlmForCausalLM

from glm_lightning import templates, tokenizers
from glm_lightning.demo import MODEL
from glm_lightning.demo.build import build
from glm_lightning.demo.corpus import BASE_ZH
from glm_lightning.demo.pretrain import Recipe, network
from glm_lightning.inference.loading import load


@pytest.fixture(scope="module")
def model() -> GlmForCausalLM:
    return GlmForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()


def test_shipped_folder_is_within_its_limits(model: GlmForCausalLM) -> None:
    assert sum(file.stat().st_size for file in MODEL.iterdir()) <= 9_000_000
    assert model.num_parameters() <= 4_000_000
    assert all(width % 64 == 0 for parameter in model.parameters() for width in parameter.shape)
    config = json.loads((MODEL / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["GlmForCausalLM"]
    assert config["dtype"] == "bfloat16"
    assert "auto_map" not in config


def test_generation_stops_where_glm4_stops() -> None:
    tokenizer = tokenizers.load(MODEL)
    config = GenerationConfig.from_pretrained(MODEL)
    stops = templates.find("glm4", tokenizer, "glm").stop_tokens
    assert config.eos_token_id == [tokenizer.control_id(name) for name in stops]
    assert config.pad_token_id == tokenizer.control_id("<|endoftext|>")


def test_shipped_network_is_the_one_of_the_recipe(model: GlmForCausalLM) -> None:
    fresh = network(tokenizers.load(MODEL), seed=Recipe().seed)
    assert {k: v.shape for k, v in fresh.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}


def test_base_speaks_its_plain_voice_on_products_it_has_not_seen() -> None:
    glm = load(MODEL)
    fresh = (c for c in BASE_ZH.conversations(Random("held out")) if len(c.messages) == 2)
    rows = list(islice(fresh, 12))
    asked = [[{"role": "user", "content": row.messages[0].content}] for row in rows]
    right = sum(glm.generate(turns, max_new_tokens=128) == row.answer() for turns, row in zip(asked, rows, strict=True))
    assert right >= 11


def test_command_and_function_make_the_same_bytes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "glm_lightning.demo.build", "--out", str(tmp_path / "one"), "--steps", "2"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=True)
    assert "final loss" in done.stdout
    report = build(tmp_path / "two", Recipe(steps=2), Console(quiet=True))
    assert report.num_tokens > 0
    names = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert {"model.safetensors", "tokenizer.json", "train.jsonl"} <= {name.name for name in names}
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
