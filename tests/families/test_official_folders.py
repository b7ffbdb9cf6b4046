"""Each early generation from its official folder to an answer: the real tokenizer, real rows, random weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import glm_lightning as gl
from glm_lightning.export import export_model
from glm_lightning.files import read_json
from glm_lightning.runs import RunFolder

SHARED = Path(__file__).resolve().parents[3] / "shared"
pytestmark = [pytest.mark.shared, pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared")]

# model folder: tokenizer folder, template that is recognised, network
GENERATIONS = {
    "chatglm-6b": ("chatglm-6b", "chatglm", "ChatGLMForCausalLM"),
    "chatglm2-6b": ("chatglm3-6b", "chatglm2", "GlmForCausalLM"),  # ChatGLM2 and 3 share one file
    "chatglm3-6b": ("chatglm3-6b", "chatglm3", "GlmForCausalLM"),
    "glm-4-9b-chat": ("glm-4-9b-chat", "glm4", "GlmForCausalLM"),
}


@pytest.fixture(scope="module", params=GENERATIONS)
def generation(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(generation: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An official folder: weights, configuration and tokenizer file, under a name that says nothing."""
    made = tmp_path_factory.mktemp("release")
    shutil.copytree(SHARED / "golden" / "models" / "real-vocab" / generation, made, dirs_exist_ok=True)
    for file in (SHARED / "tokenizers" / GENERATIONS[generation][0]).iterdir():
        shutil.copy(file, made)
    return made


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Five steps of LoRA on rows of AdvertiseGen."""
    place = tmp_path_factory.mktemp("run")
    gl.train([
        "model=local",
        f"model.path={folder}",
        "data=adgen",
        f"data.train={SHARED / 'data' / 'advertisegen' / 'adgen.jsonl'}",
        "data.val=4",
        "data.test=2",
        "data.max_length=256",
        f"data.cache_dir={place / 'cache'}",
        "trainer.max_steps=5",
        "trainer.accelerator=cpu",
        "optimizer.lr=1e-2",
        "evaluation.max_new_tokens=8",
        "logger=none",
        f"run_dir={place / 'run'}",
    ])  # fmt: skip
    return RunFolder(place / "run")


def test_it_learns(run: RunFolder) -> None:
    report = run.read_report()
    assert report["metrics"]["val/loss"] < report["before"]["val/loss"]


def test_it_is_recognised_and_answers_the_same_after_loading(generation: str, folder: Path, run: RunFolder) -> None:
    _, template, network = GENERATIONS[generation]
    base, tuned = gl.load(folder), gl.load(run.path)
    assert (base.template.name, type(base.model).__name__) == (template, network)
    messages = [{"role": "user", "content": "类型#裙*材质#网纱"}]
    answer = tuned.generate(messages, max_new_tokens=8)
    # random weights may begin with a blank, which streaming leaves out
    assert answer.strip() == tuned.template.clean("".join(tuned.stream(messages, max_new_tokens=8))).strip()
    with torch.no_grad():
        ids = torch.tensor([base.prompt(messages)])
        assert not torch.equal(base.model(ids).logits, tuned.model(ids).logits)


def test_the_adapter_holds_nothing_else(run: RunFolder) -> None:
    tensors = load_file(run.artefact("adapter") / "adapter_model.safetensors")
    assert all(".lora_" in name for name in tensors)


def test_it_goes_back_into_the_official_layout(folder: Path, run: RunFolder, tmp_path: Path) -> None:
    exported = export_model(str(run.path), tmp_path / "official", layout="official")
    assert "largest difference of a logit" in exported.notice
    before, after = tensors(folder), tensors(tmp_path / "official")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    linear = {name for name, tensor in before.items() if tensor.dim() == 2 and ".layers." in name}
    # float16 rounds some small updates away, and nothing but adapted layers may change
    assert changed
    assert changed <= linear
    config = read_json(tmp_path / "official" / "config.json")
    assert config == read_json(folder / "config.json")
    again = gl.load(tmp_path / "official")
    assert again.template.name == gl.load(run.path).template.name
    messages = [{"role": "user", "content": "类型#裙*材质#网纱"}]
    assert again.prompt(messages) == gl.load(run.path).prompt(messages)


def test_the_merged_model_answers_as_the_run(run: RunFolder, tmp_path: Path) -> None:
    export_model(str(run.path), tmp_path / "merged", dtype="float32")
    merged, tuned = gl.load(tmp_path / "merged"), gl.load(run.path)
    messages = [{"role": "user", "content": "类型#裙*材质#网纱"}]
    ids = torch.tensor([tuned.prompt(messages)])
    assert merged.prompt(messages) == ids[0].tolist()
    with torch.no_grad():
        assert (merged.model(ids).logits - tuned.model(ids).logits).abs().max() < 1e-3
    assert merged.generate(messages, max_new_tokens=8) == tuned.generate(messages, max_new_tokens=8)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.bin"):
        found |= torch.load(file, weights_only=True)
    for file in folder.glob("*.safetensors"):
        found |= load_file(file)
    return found
