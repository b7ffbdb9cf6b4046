"""An adapter on a base that the user names: whole, and on the weights it belongs to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GlmForCausalLM

import glm_lightning as gl
from glm_lightning.runs import RunFolder
from glm_lightning.types import UserError

IDS = torch.arange(20, 40)[None]
METHODS = ("lora", "adalora", "ia3", "prompt_tuning", "ptuning_v2")

# peft 0.21 says so of every AdaLoRA adapter that it loads, and uses the keys all the same
pytestmark = pytest.mark.filterwarnings("ignore:The following rank_pattern keys:RuntimeWarning")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_glm: Path, rows: Path) -> Callable[[str], RunFolder]:
    """Two steps of a method, made once."""
    folder = tmp_path_factory.mktemp("runs")

    def run(method: str) -> RunFolder:
        made = RunFolder(folder / method)
        if not made.finished:
            gl.train([
                "model=local", f"model.path={tiny_glm}", "data=messages", f"data.train={rows}", "data.val=8",
                "data.batch_size=8", f"data.cache_dir={folder / 'cache'}", "trainer.max_epochs=1",
                "trainer.max_steps=3", "trainer.precision=32-true", "trainer.accelerator=cpu", "optimizer.lr=1e-1",
                "logger=none", f"run_dir={made.path}", f"method={method}",
            ])  # fmt: skip
        return made

    return run


@pytest.fixture
def adapter(runs: Callable[[str], RunFolder], tmp_path: Path) -> Path:
    """LoRA's adapter folder, to be spoilt."""
    return Path(shutil.copytree(runs("lora").artefact("adapter"), tmp_path / "adapter"))


def by_others(adapter: Path) -> Path:
    """The folder as another tool would have left it."""
    (adapter / "glm_lightning.json").unlink()
    return adapter


def changed(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """The adapter with other tensors."""
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


def logits(glm: gl.inference.loading.GLM) -> torch.Tensor:
    with torch.no_grad():
        return glm.model(input_ids=IDS, use_cache=False).logits[:, -IDS.shape[1] :]


@pytest.mark.parametrize("method", METHODS)
def test_run_its_adapter_and_stock_peft_are_one(runs, tiny_glm, method):
    run = runs(method)
    expected = logits(gl.load(run.path))
    assert (expected - logits(gl.load(tiny_glm))).abs().max() > 1e-3
    for given in (run.path, run.artefact("adapter"), str(run.artefact("adapter"))):
        assert torch.equal(logits(gl.load(tiny_glm, adapter=given)), expected)
    stock = peft.PeftModel.from_pretrained(
        GlmForCausalLM.from_pretrained(tiny_glm, dtype=torch.float32), str(run.artefact("adapter"))
    ).eval()
    with torch.no_grad():
        got = stock(input_ids=IDS, use_cache=method == "ptuning_v2").logits[:, -IDS.shape[1] :]
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", ["lora", "ptuning_v2"])
def test_weights_that_it_was_not_trained_on_are_refused_wherever_they_lie(runs, tiny_glm, tmp_path, method):
    adapter = runs(method).artefact("adapter")
    moved = shutil.copytree(tiny_glm, tmp_path / "moved")
    assert torch.equal(logits(gl.load(moved, adapter=adapter)), logits(gl.load(tiny_glm, adapter=adapter)))
    changed_base = load_file(moved / "model.safetensors")
    changed_base["model.norm.weight"] += 1
    save_file(changed_base, moved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"was trained on other weights than those of .*moved .*its base is .*tiny-glm"):
        gl.load(moved, adapter=adapter)


def test_a_base_from_a_hub_cannot_be_compared_with_a_folder(adapter, tiny_glm):
    about = json.loads((adapter / "glm_lightning.json").read_text(encoding="utf-8"))
    about |= {"base": "zai-org/tiny", "fingerprint": "0"}
    (adapter / "glm_lightning.json").write_text(json.dumps(about), encoding="utf-8")
    with pytest.warns(UserWarning, match="was trained on zai-org/tiny, .* cannot be told"):
        gl.load(tiny_glm, adapter=adapter)


def test_what_it_was_trained_with_comes_along(runs, adapter, tiny_glm):
    about = json.loads((adapter / "glm_lightning.json").read_text(encoding="utf-8"))
    (adapter / "glm_lightning.json").write_text(json.dumps(about | {"quantize": "int8"}), encoding="utf-8")
    held, full = (gl.load(tiny_glm, adapter=adapter, quantize=q).model for q in (None, "none"))
    kinds = [{p.dtype for p in network.parameters()} for network in (held, full)]
    assert torch.int8 in kinds[0]
    assert kinds[1] == {torch.float32}


def test_an_adapter_by_others_needs_no_fingerprint(adapter, tiny_glm, runs):
    assert torch.equal(logits(gl.load(tiny_glm, adapter=by_others(adapter))), logits(gl.load(runs("lora").path)))


def test_a_network_of_another_kind_is_refused_though_it_fits(adapter, tiny_glm, tmp_path):
    other = tmp_path / "llama"
    shutil.copytree(tiny_glm, other)
    config = json.loads((other / "config.json").read_text(encoding="utf-8"))
    (other / "config.json").write_text(json.dumps(config | {"model_type": "glm4"}), encoding="utf-8")
    said = json.loads((by_others(adapter) / "adapter_config.json").read_text(encoding="utf-8"))
    said["base_model_name_or_path"] = str(other)
    (adapter / "adapter_config.json").write_text(json.dumps(said), encoding="utf-8")
    with pytest.raises(UserError, match=r"trained on a network of type 'glm4' .* is of type 'glm'"):
        gl.load(tiny_glm, adapter=adapter)


EXTRA = "base_model.model.extra.lora_A.weight"
A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        (lambda t: t.pop(A), r"1 tensors of the adapter are missing in its file: .*q_proj\.lora_A"),
        (lambda t: t.update({EXTRA: t[A].clone()}), r"1 tensors .* have no place .*: .*extra\.lora_A"),
        (lambda t: t.update({A: t[A][:, :-1].contiguous()}), r"another shape, such as .*: \(8, 63\), .* \(8, 64\)"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_named(adapter, tiny_glm, change, pattern):
    with pytest.raises(UserError, match=pattern):
        gl.load(tiny_glm, adapter=changed(adapter, change))


def test_torn_files_are_named(adapter, tiny_glm):
    (adapter / "adapter_model.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match="holds no whole adapter of PEFT"):
        gl.load(tiny_glm, adapter=adapter)
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="holds no whole adapter of PEFT"):
        gl.load(tiny_glm, adapter=adapter)
    (adapter / "glm_lightning.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match=r"glm_lightning\.json: names no base and no fingerprint"):
        gl.load(tiny_glm, adapter=adapter)
    (by_others(adapter) / "adapter_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"adapter_config\.json: cannot be read"):
        gl.load(adapter)


def test_targets_that_the_network_has_not_are_told(adapter, tiny_glm):
    said = json.loads((by_others(adapter) / "adapter_config.json").read_text(encoding="utf-8"))
    (adapter / "adapter_config.json").write_text(json.dumps(said | {"target_modules": ["c_attn"]}), encoding="utf-8")
    with pytest.raises(UserError, match=r"does not fit GlmForCausalLM: .*c_attn"):
        gl.load(tiny_glm, adapter=adapter)


def test_folders_without_an_adapter_are_told(tiny_glm, tmp_path, runs):
    with pytest.raises(UserError, match="there is no such folder"):
        gl.load(tiny_glm, adapter=tmp_path / "none")
    with pytest.raises(UserError, match=r"holds neither adapter_config\.json nor a prefix"):
        gl.load(tiny_glm, adapter=tiny_glm)
    run = runs("lora")
    with pytest.raises(UserError, match=r"has an adapter already .*give its base"):
        gl.load(run.path, adapter=run.path)


def test_a_name_is_looked_up_where_it_is_said(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "modelscope", None)
    with pytest.raises(UserError, match="pip install modelscope"):
        gl.load("ZhipuAI/tiny", hub="modelscope")
