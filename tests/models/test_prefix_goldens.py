"""Official P-tuning v2 checkpoints: logits, losses, gradients and answers of the official code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from glm_lightning.inference.generation import generate
from glm_lightning.models import Source, prefix

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden"
pytestmark = [pytest.mark.shared, pytest.mark.skipif(not GOLDEN.is_dir(), reason="no ../shared")]
NAMES = ["chatglm-6b-pt", "chatglm-6b-pt-projection", "chatglm2-6b-pt", "chatglm2-6b-pt-projection", "chatglm3-6b-pt"]


class Golden:
    """A base with an official prefix, and what the official code made of them."""

    def __init__(self, name: str) -> None:
        folder = GOLDEN / "golden" / "ptuning" / name
        self.about: dict[str, Any] = json.loads((folder / "golden.json").read_text(encoding="utf-8"))
        self.tensors = load_file(folder / "golden.safetensors")
        self.prefix = GOLDEN / self.about["prefix"]
        base = Source(path=str(GOLDEN / self.about["base"])).load(dtype="float32").eval()
        self.network: Any = prefix.load(base, self.prefix)

    def inputs(self, case: str) -> dict[str, Tensor]:
        names = ("input_ids", "attention_mask", "position_ids")
        given = {name: self.tensors[f"{case}.{name}"] for name in names if f"{case}.{name}" in self.tensors}
        if given.get("attention_mask", self.tensors[f"{case}.labels"]).dtype == torch.bool:
            given["attention_mask"] = ~given["attention_mask"]  # ChatGLM-6B's own says where it may not attend
        return given

    def real(self, case: str) -> Tensor:
        """Where logits mean something: (B, T) bool."""
        mask = self.tensors.get(f"{case}.attention_mask")
        if mask is None:
            return torch.ones_like(self.tensors[f"{case}.input_ids"], dtype=torch.bool)
        # of a square mask padding is what nobody attends to
        return ~mask[:, 0].all(dim=1) if mask.dtype == torch.bool else mask.bool()


@pytest.fixture(scope="module", params=NAMES)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


def test_logits(golden: Golden) -> None:
    for case in golden.about["cases"]:
        with torch.no_grad():
            logits = golden.network(**golden.inputs(case)).logits
        assert (logits - golden.tensors[f"{case}.logits"])[golden.real(case)].abs().max() < 5e-5, case


def test_loss_and_gradients(golden: Golden) -> None:
    case = golden.about["gradients"]["case"]
    golden.network.zero_grad()
    logits = golden.network(**golden.inputs(case)).logits[:, :-1]
    labels = golden.tensors[f"{case}.labels"][:, 1:]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
    assert abs(loss.item() - golden.about["cases"][case]["loss"]) < 1e-5
    loss.backward()
    own = dict(prefix.encoder_of(golden.network).named_parameters())
    for name in golden.about["gradients"]["tensors"]:
        want = golden.tensors[f"{case}.grad.{name}"]
        gradient = own[name.removeprefix("transformer.prefix_encoder.")].grad
        assert (gradient - want).norm() / want.norm() < 1e-5, name


def test_greedy_answers(golden: Golden) -> None:
    wanted = golden.about["generation"]
    (answer,) = generate(golden.network, [wanted["prompt_ids"]], stop_ids=[], pad_id=0, max_new_tokens=12)
    assert answer.ids == wanted["new_ids"]


def test_the_official_form_comes_back(golden: Golden, tmp_path: Path) -> None:
    prefix.save_official(golden.network, tmp_path)
    official, written = (torch.load(f / "pytorch_model.bin", weights_only=True) for f in (golden.prefix, tmp_path))
    assert official.keys() == written.keys()
    assert all(torch.equal(official[name], written[name]) for name in official)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config["pre_seq_len"] == golden.about["pre_seq_len"]
    assert config["prefix_projection"] is golden.about["prefix_projection"]
