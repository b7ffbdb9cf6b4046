"""Logits, losses, gradients and answers of the official code of ChatGLM2, ChatGLM3 and GLM-4."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from glm_lightning.inference.generation import generate, stream
from glm_lightning.models import Source
from glm_lightning.objectives.supervised import token_sums
from glm_lightning.types import Batch

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden"
pytestmark = [pytest.mark.shared, pytest.mark.skipif(not GOLDEN.is_dir(), reason="no ../shared")]
NAMES = [
    f"{size}/{name}" for size in ("tiny", "real-vocab") for name in ("chatglm2-6b", "chatglm3-6b", "glm-4-9b-chat")
]


class Golden:
    """A folder and what the official code made of it."""

    def __init__(self, name: str) -> None:
        self.about: dict[str, Any] = json.loads((GOLDEN / "golden" / name / "golden.json").read_text(encoding="utf-8"))
        self.tensors = load_file(GOLDEN / "golden" / name / "golden.safetensors")
        self.network: Any = Source(path=str(GOLDEN / "models" / name)).load(dtype="float32").eval()

    def inputs(self, case: str) -> dict[str, Tensor]:
        names = ("input_ids", "attention_mask", "position_ids")
        return {name: self.tensors[f"{case}.{name}"] for name in names if f"{case}.{name}" in self.tensors}

    def columns(self, logits: Tensor) -> Tensor:
        return logits[..., self.tensors["logits_columns"]] if "logits_columns" in self.tensors else logits


@pytest.fixture(scope="module", params=NAMES)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


def test_logits(golden: Golden) -> None:
    for case in golden.about["cases"]:
        inputs = golden.inputs(case)
        with torch.no_grad():
            logits = golden.network(**inputs).logits
        real = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
        difference = (golden.columns(logits) - golden.tensors[f"{case}.logits"])[real]
        assert difference.abs().max() < 5e-5, case
        if f"{case}.logsumexp" in golden.tensors:
            assert (logits.logsumexp(-1) - golden.tensors[f"{case}.logsumexp"])[real].abs().max() < 5e-5


def test_losses_in_training_form(golden: Golden) -> None:
    """Right-padded, without a mask, through the head that sees only supervised positions."""
    for case in golden.about["cases"].keys() & {"plain", "right"}:
        labels = golden.tensors[f"{case}.labels"]
        ids = golden.tensors[f"{case}.input_ids"]
        lengths = golden.inputs(case).get("attention_mask", torch.ones_like(ids)).sum(-1)
        batch = Batch.of(ids, labels, lengths, step_tokens=1, rows=[0] * len(ids))
        sums = token_sums(golden.network, batch)
        assert abs(sums.total / sums.num_tokens - golden.tensors[f"{case}.loss"]) < 1e-5


def test_gradients(golden: Golden) -> None:
    case = golden.about["gradients"]["case"]
    golden.network.zero_grad()
    golden.network(**golden.inputs(case), labels=golden.tensors[f"{case}.labels"]).loss.backward()
    ours = {name: p.grad for name, p in golden.network.named_parameters()}
    for name in golden.about["gradients"]["tensors"]:
        expected = golden.tensors[f"{case}.grad.{name}"]
        assert (joined(ours, name) - expected).norm() / expected.norm() < 1e-5, name


def joined(gradients: dict[str, Tensor], official: str) -> Tensor:
    """A gradient under its official name."""
    names = {
        "transformer.embedding.word_embeddings": "model.embed_tokens",
        "transformer.output_layer": "lm_head",
        "transformer.encoder.final_layernorm": "model.norm",
        "transformer.encoder.layers": "model.layers",
        "self_attention.dense": "self_attn.o_proj",
        "mlp.dense_h_to_4h": "mlp.gate_up_proj",
        "mlp.dense_4h_to_h": "mlp.down_proj",
    }
    for old, new in names.items():
        official = official.replace(old, new)
    if "query_key_value" not in official:
        return gradients[official]
    parts = (official.replace("self_attention.query_key_value", f"self_attn.{part}_proj") for part in "qkv")
    return torch.cat([gradients[part] for part in parts])


def test_greedy_answers_cached_and_uncached(golden: Golden) -> None:
    about = golden.about["generation"]
    prompt, expected = about["prompt_ids"], about["new_ids"]
    (answer,) = generate(golden.network, [prompt], stop_ids=[], pad_id=0, max_new_tokens=len(expected))
    assert answer.ids == expected
    pieces = stream(
        golden.network,
        prompt,
        tokenizer_decode=lambda ids: "".join(f"{i} " for i in ids),
        stop_ids=[],
        max_new_tokens=len(expected),
    )
    assert "".join(pieces).split() == [str(i) for i in expected]
    ids = list(prompt)
    for wanted, logits in zip(expected, golden.tensors["generation.logits"], strict=True):
        with torch.no_grad():
            full = golden.network(torch.tensor([ids]), use_cache=False).logits[0, -1]
        assert (golden.columns(full) - logits).abs().max() < 5e-5
        assert int(full.argmax()) == wanted
        ids.append(wanted)


def test_an_answer_does_not_depend_on_its_batch(golden: Golden) -> None:
    about = golden.about["generation"]
    prompt, expected = about["prompt_ids"], about["new_ids"]
    others = [prompt[:2], prompt * 3, prompt[1:]]
    answers = generate(golden.network, [*others, prompt], stop_ids=[], pad_id=0, max_new_tokens=len(expected))
    assert answers[-1].ids == expected
