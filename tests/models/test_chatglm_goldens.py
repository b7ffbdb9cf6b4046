"""Logits, losses, gradients and answers of the official code of ChatGLM-6B."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rewriting import rewrite
from safetensors.torch import load_file
from torch import Tensor

from glm_lightning.inference.generation import generate, stream
from glm_lightning.models import Source, chatglm
from glm_lightning.models.chatglm.positions import attention_mask_of, positions
from glm_lightning.objectives.supervised import token_sums
from glm_lightning.types import Batch

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden"
pytestmark = [pytest.mark.shared, pytest.mark.skipif(not GOLDEN.is_dir(), reason="no ../shared")]
PAD = 3


class Golden:
    """A folder and what the official code made of it."""

    def __init__(self, name: str) -> None:
        self.folder = GOLDEN / "models" / name
        self.about: dict[str, Any] = json.loads((GOLDEN / "golden" / name / "golden.json").read_text(encoding="utf-8"))
        self.tensors = load_file(GOLDEN / "golden" / name / "golden.safetensors")
        self.network: Any = Source(path=str(self.folder)).load(dtype="float32").eval()

    def inputs(self, case: str) -> dict[str, Tensor]:
        """Ids, and a mask where padding is on the left; the network makes positions and the mask it needs itself."""
        ids = self.tensors[f"{case}.input_ids"]
        return {"input_ids": ids, "attention_mask": (ids != PAD).long()} if case == "left" else {"input_ids": ids}

    def columns(self, logits: Tensor) -> Tensor:
        return logits[..., self.tensors["logits_columns"]] if "logits_columns" in self.tensors else logits


@pytest.fixture(scope="module", params=["tiny/chatglm-6b", "real-vocab/chatglm-6b"])
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logits(golden: Golden, attention: str) -> None:
    golden.network.set_attn_implementation(attention)
    for case in golden.about["cases"]:
        inputs = golden.inputs(case)
        logits = golden.network(**inputs, use_cache=False).logits
        real = inputs["input_ids"] != PAD
        assert (golden.columns(logits) - golden.tensors[f"{case}.logits"])[real].abs().max() < 5e-5, case
        if f"{case}.logsumexp" in golden.tensors:
            assert (logits.logsumexp(-1) - golden.tensors[f"{case}.logsumexp"])[real].abs().max() < 5e-5
    golden.network.set_attn_implementation("sdpa")


def test_positions_and_masks(golden: Golden) -> None:
    config = golden.network.config
    for case in golden.about["cases"]:
        inputs = golden.inputs(case)
        ids, padding = inputs["input_ids"], inputs.get("attention_mask")
        found = positions(ids, padding, config)
        assert torch.equal(found, golden.tensors[f"{case}.position_ids"])
        sees = attention_mask_of(config, torch.zeros(*ids.shape, 1), padding, None, found)
        assert sees is not None
        real = ids != PAD
        both = real[:, None, :, None] & real[:, None, None, :]
        assert torch.equal(sees & both, ~golden.tensors[f"{case}.attention_mask"] & both)


def test_the_official_positions_and_mask_are_understood(golden: Golden) -> None:
    for case in golden.about["cases"]:
        ids = golden.tensors[f"{case}.input_ids"]
        with torch.no_grad():
            logits = golden.network(
                input_ids=ids,
                attention_mask=~golden.tensors[f"{case}.attention_mask"],
                position_ids=golden.tensors[f"{case}.position_ids"],
            ).logits
        assert (golden.columns(logits) - golden.tensors[f"{case}.logits"])[ids != PAD].abs().max() < 5e-5


def test_losses(golden: Golden) -> None:
    for case, about in golden.about["cases"].items():
        labels = golden.tensors[f"{case}.labels"]
        with torch.no_grad():
            loss = golden.network(**golden.inputs(case), labels=labels, use_cache=False).loss
        assert abs(loss.item() - about["loss"]) < 1e-5


def test_losses_in_training_form(golden: Golden) -> None:
    """Right-padded, without a mask, through the head that sees only supervised positions."""
    for case in golden.about["cases"].keys() & {"train", "infill"}:
        ids, labels = golden.tensors[f"{case}.input_ids"], golden.tensors[f"{case}.labels"]
        batch = Batch.of(ids, labels, (ids != PAD).sum(-1), step_tokens=1, rows=[0] * len(ids))
        sums = token_sums(golden.network, batch)
        assert abs(sums.total / sums.num_tokens - golden.tensors[f"{case}.loss"]) < 1e-5


@pytest.mark.parametrize("training_form", [False, True])
def test_gradients(golden: Golden, training_form: bool) -> None:
    case = golden.about["gradients"]["case"]
    ids, labels = golden.tensors[f"{case}.input_ids"], golden.tensors[f"{case}.labels"]
    golden.network.zero_grad()
    if training_form:
        sums = token_sums(golden.network, Batch.of(ids, labels, ids[:, 0], step_tokens=1, rows=[]))
        (sums.total / sums.num_tokens).backward()
    else:
        golden.network(input_ids=ids, labels=labels).loss.backward()
    ours = {name: parameter.grad for name, parameter in golden.network.named_parameters()}
    for name in golden.about["gradients"]["tensors"]:
        expected = golden.tensors[f"{case}.grad.{name}"]
        assert (ours[name] - expected).norm() / expected.norm() < 1e-5, name


def test_greedy_answers_cached_and_uncached(golden: Golden) -> None:
    about = golden.about["generation"]
    prompt, expected = about["prompt_ids"], about["new_ids"]
    (answer,) = generate(golden.network, [prompt], stop_ids=[], pad_id=PAD, max_new_tokens=len(expected))
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
    others = [prompt[-2:], prompt[:-2] * 3 + prompt[-2:], prompt[1:]]
    answers = generate(golden.network, [*others, prompt], stop_ids=[], pad_id=PAD, max_new_tokens=len(expected))
    assert answers[-1].ids == expected


def test_saved_tensors_are_those_of_the_official_files(golden: Golden, tmp_path: Path) -> None:
    raw = json.loads((golden.folder / "config.json").read_text(encoding="utf-8"))
    rewrite(golden.folder, tmp_path / "back")
    expected: dict[str, Tensor] = {}
    for file in sorted(golden.folder.glob("*.bin")):
        expected |= torch.load(file, weights_only=True)
    found = load_file(tmp_path / "back" / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name
    assert json.loads((tmp_path / "back" / "config.json").read_text(encoding="utf-8")) == raw


def test_a_configuration_saved_by_transformers_has_the_official_keys(golden: Golden, tmp_path: Path) -> None:
    raw = json.loads((golden.folder / "config.json").read_text(encoding="utf-8"))
    chatglm.config(raw).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    for key in raw.keys() - {"_name_or_path", "auto_map", "transformers_version"}:
        assert saved[key] == raw[key], key
    assert saved.keys() - raw.keys() == {"tie_word_embeddings"}
