"""Freezing: which of the base's own weights move."""

import re
import shutil

import pytest
import torch
from tiny_families import FAMILIES, learn, logits, made, network_of, skeleton_of
from transformers import AutoModelForCausalLM

from glm_lightning.methods import layers, weights
from glm_lightning.methods.freeze import Freeze
from glm_lightning.types import UserError


def trained(family="glm", **knobs):
    return {name.removeprefix("network.") for name in made("freeze", network_of(family), **knobs).trained()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("num_layers", "which"), [(1, "1"), (-1, "0"), (2, "01")])
def test_the_last_or_the_first_layers(family, num_layers, which):
    names = trained(family, num_layers=num_layers)
    everything = {name for name, _ in network_of(family).named_parameters()}
    assert names == {name for name in everything if re.search(rf"\.layers\.[{which}]\.", name)}


@pytest.mark.parametrize("family", FAMILIES)
def test_embedding_and_head(family):
    network = network_of(family)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    embedding = names[id(network.get_input_embeddings().weight)]
    head = names[id(network.get_output_embeddings().weight)]
    norm = {names[id(p)] for module in layers.final_norm(network) for p in module.parameters()}
    assert all("norm" in name for name in norm)
    assert norm
    assert trained(family, num_layers=0, embeddings=True) == {embedding}
    assert trained(family, num_layers=0, head=True) == {head, *norm}
    assert (embedding == head) == (family == "chatglm")


def test_one_matrix_for_both_is_told():
    tied = made("freeze", network_of("chatglm"), num_layers=0, head=True)
    assert tied.notices == ["embedding and output layer are one matrix in this network: both are trained"]
    assert not made("freeze", network_of("chatglm"), num_layers=0, head=True, embeddings=True).notices
    assert not made("freeze", network_of("glm"), num_layers=0, head=True).notices


def test_modules_by_name_and_pattern():
    assert trained(num_layers=0, modules=["input_layernorm"]) == {
        f"model.layers.{layer}.input_layernorm.weight" for layer in (0, 1)
    }
    assert trained(num_layers=0, modules=[r"model\.layers\.0\.self_attn\.[qk]_proj"]) == {
        f"model.layers.0.self_attn.{side}_proj.{kind}" for side in "qk" for kind in ("weight", "bias")
    }


def test_only_what_is_trained_is_widened_and_saved_in_the_bases_type(tmp_path):
    method = made("freeze", network_of("glm", dtype=torch.bfloat16), num_layers=1)
    learn_in_bfloat16(method)
    dtypes = {name: parameter.dtype for name, parameter in method.network.named_parameters()}
    assert {dtype for name, dtype in dtypes.items() if ".layers.1." in name} == {torch.float32}
    assert {dtype for name, dtype in dtypes.items() if ".layers.1." not in name} == {torch.bfloat16}
    object.__setattr__(method.ingredients, "base_dtype", torch.bfloat16)
    method.save(tmp_path)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert {parameter.dtype for parameter in saved.parameters()} == {torch.bfloat16}
    base = network_of("glm", dtype=torch.bfloat16)
    assert torch.equal(saved.model.layers[0].mlp.down_proj.weight, base.model.layers[0].mlp.down_proj.weight)
    assert not torch.equal(saved.model.layers[1].mlp.down_proj.weight, base.model.layers[1].mlp.down_proj.weight)


def learn_in_bfloat16(method):
    with torch.autocast("cpu", torch.bfloat16):
        learn(method)


def test_float64_stays_float64():
    method = made("freeze", network_of("glm", dtype=torch.float64), num_layers=1)
    assert {parameter.dtype for parameter in method.trained().values()} == {torch.float64}
    with method.without_adaptation():
        assert torch.equal(logits(method.network), logits(network_of("glm", dtype=torch.float64)))


@pytest.mark.parametrize(
    ("knobs", "pattern"),
    [
        ({"num_layers": 3}, r"method\.num_layers is 3: this network has 2"),
        ({"num_layers": -3}, r"method\.num_layers is -3: this network has 2"),
        (
            {"modules": ["norms"]},
            r"method\.modules holds 'norms': no module with weights .*; there are .*norm",
        ),
        ({"modules": ["(norm"]}, r"method\.modules holds '\(norm': no regular expression"),
        ({"num_layers": 0}, r"method\.num_layers is 0: nothing else is trained"),
    ],
)
def test_what_cannot_be_is_refused_by_name(knobs, pattern):
    with pytest.raises(UserError, match=pattern) as caught:
        made("freeze", **knobs).examine(skeleton_of("glm"))
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_sixteen_bits_on_disk(train, tiny_glm, tmp_path, monkeypatch, precision):
    folder = tmp_path / "base"
    shutil.copytree(tiny_glm, folder)
    AutoModelForCausalLM.from_pretrained(tiny_glm, dtype=torch.bfloat16).save_pretrained(folder)
    seen = []
    monkeypatch.setattr(Freeze, "on_train_end", lambda self: seen.append(dict(self.named_buffers())))
    train("run", f"model.path={folder}", "method=freeze", "method.num_layers=1", "data.packing=true",
          f"trainer.precision={precision}", "trainer.max_steps=2")  # fmt: skip
    (buffers,) = seen
    assert buffers["network.model.rotary_emb.inv_freq"].dtype == torch.float32


def test_the_routing_bias_of_a_mixture_is_not_rounded(tmp_path):
    network = network_of("glm4_moe")
    (bias,) = [buffer for name, buffer in network.named_buffers() if name.endswith("e_score_correction_bias")]
    bias.fill_(1.0001)
    weights.write(network, tmp_path, dtype=torch.bfloat16)
    written = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert written.dtype == torch.bfloat16
    assert torch.equal(written.get_buffer("model.layers.1.mlp.gate.e_score_correction_bias"), bias)
