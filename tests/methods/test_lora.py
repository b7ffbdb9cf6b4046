"""The knobs of low-rank updates: where they go, how they begin, how fast they learn, what is refused."""

import re
from dataclasses import replace

import peft
import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from tiny_families import FAMILIES, MIXTURES, batch, learn, logits, made, network_of, skeleton_of
from tiny_runs import weights

import glm_lightning
from glm_lightning.callbacks import BestAndLast
from glm_lightning.methods import layers, splitting
from glm_lightning.objectives.sft import SFT
from glm_lightning.runs import RunFolder
from glm_lightning.types import UserError

pytestmark = pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning")

SPLITTING = ("pissa", "pissa_niter_4", "olora")


def lora(family="glm", **knobs):
    return made("lora", network_of(family), **knobs)


def problems(family="glm", **knobs):
    with pytest.raises(UserError) as caught:
        made("lora", **knobs).examine(skeleton_of(family))
    return caught.value.problems


def adapted(method):
    """Names of the layers with an update, with its rank and scale."""
    return {
        name.removeprefix("base_model.model."): (module.r["default"], module.scaling["default"])
        for name, module in method.network.named_modules()
        if isinstance(module, LoraLayer)
    }


def last_parts(method):
    return {name.rpartition(".")[2] for name in adapted(method)}


def stock(method, family, folder):
    """What was saved, read by PEFT onto the base."""
    method.save(folder)
    return peft.PeftModel.from_pretrained(network_of(family), str(folder))


# -- where


@pytest.mark.parametrize(
    ("family", "targets", "expected"),
    [
        ("glm", "all-linear", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"}),
        ("glm", "attention", {"q_proj", "k_proj", "v_proj", "o_proj"}),
        ("glm", "qkv", {"q_proj", "k_proj", "v_proj"}),
        ("glm", ["q_proj", "self_attn.v_proj"], {"q_proj", "v_proj"}),
        ("glm", r"model\.layers\.1\..*_proj", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"}),
        ("chatglm", "all-linear", {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}),
        ("chatglm", "attention", {"query_key_value", "dense"}),
        ("chatglm", "qkv", {"query_key_value"}),
        ("glm4_moe", "qkv", {"q_proj", "k_proj", "v_proj"}),
        ("glm4_moe_lite", "qkv", {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj"}),
    ],
)
def test_targets(family, targets, expected):
    assert last_parts(lora(family, targets=targets)) == expected


def test_a_pattern_is_of_whole_names():
    assert all(name.startswith("model.layers.1.") for name in adapted(lora(targets=r"model\.layers\.1\..*_proj")))


@pytest.mark.parametrize("family", MIXTURES)
@pytest.mark.parametrize("experts", [False, True])
def test_a_mixture_has_its_linear_layers_adapted_and_its_experts_if_asked_for(family, experts, tmp_path):
    """PEFT would take the names of dense and shared layers for those of the experts."""
    method = lora(family, experts=experts)
    trained = {name.partition(".lora_")[0].replace(".base_layer", "") for name in method.trained()}
    in_mlp = {name.split(".mlp.")[1] for name in trained if ".mlp." in name}
    dense = {
        "gate_proj",
        "up_proj",
        "down_proj",
        *(f"shared_experts.{n}" for n in ("gate_proj", "up_proj", "down_proj")),
    }
    assert in_mlp == dense | ({"experts"} if experts else set())
    assert any("stay as they are" in notice for notice in method.notices) == (not experts)
    learn(method)
    network = stock(method, family, tmp_path)
    assert (logits(network) - logits(method.network)).abs().max() < 1e-5


def test_experts_learn():
    method = lora("glm4_moe", targets=[], experts=True)
    assert {name.partition(".lora_")[0].rpartition(".mlp.")[2].partition(".")[0] for name in method.trained()} == {
        "experts"
    }
    before = logits(method.network)
    losses = learn(method)
    assert losses[-1] < losses[0]
    assert (logits(method.network) - before).abs().max() > 1e-3


# -- how they begin


@pytest.mark.parametrize("init", ["default", "gaussian", "orthogonal", *SPLITTING])
def test_every_start_is_the_base_and_comes_back_as_a_plain_adapter(init, tmp_path):
    method = lora(init=init)
    base = logits(network_of("glm"))
    assert (logits(method.network) - base).abs().max() < 1e-5
    learn(method)
    assert (logits(method.network) - base).abs().max() > 1e-2
    with method.without_adaptation():
        assert (logits(method.network) - base).abs().max() < 1e-5
    assert (logits(stock(method, "glm", tmp_path)) - logits(method.network)).abs().max() < 1e-5


@pytest.mark.parametrize("init", SPLITTING)
def test_a_splitting_start_takes_the_largest_part_of_the_weights(init):
    method = lora(init=init, targets=["q_proj"], rank=4, alpha=8)
    base = network_of("glm").model.layers[0].self_attn.q_proj.weight.detach()
    layer = method.network.base_model.model.model.layers[0].self_attn.q_proj
    rest = layer.base_layer.weight
    update = 2 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    torch.testing.assert_close(rest + update, base, atol=1e-6, rtol=0)
    if init.startswith("pissa"):
        largest = torch.linalg.svdvals(base)
        assert torch.linalg.svdvals(rest).max() == pytest.approx(
            float(largest[4]), rel=0.01 if init == "pissa" else 0.15
        )


@pytest.mark.parametrize("knobs", [{"rank_pattern": {"q_proj": 2}}, {"alpha_pattern": {"q_proj": 3}}, {"rslora": True}])
def test_a_splitting_start_with_other_scales_comes_back(knobs, tmp_path):
    method = lora(init="pissa", **knobs)
    learn(method)
    assert (logits(stock(method, "glm", tmp_path)) - logits(method.network)).abs().max() < 1e-5


def test_a_splitting_start_leaves_the_live_network_as_it_was_when_it_is_saved(tmp_path):
    method = lora(init="pissa", dropout=0.1)
    learn(method)
    before, trained = logits(method.network), method.trained().keys()
    method.save(tmp_path)
    assert torch.equal(logits(method.network), before)
    assert method.trained().keys() == trained
    assert list(method.network.peft_config) == ["default"]


@pytest.mark.parametrize("other_machine", [False, True])
@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_a_splitting_start_is_resumed_to_the_last_bit(train, tmp_path, monkeypatch, init, other_machine):
    knobs = (
        f"method.init={init}", "callbacks.checkpoints.every_n_steps=1", "trainer.precision=32-true",
        "trainer.max_steps=4", "optimizer.lr=1e-3",
    )  # fmt: skip
    whole = train("whole", *knobs)
    original, split = BestAndLast.on_train_batch_end, splitting.split

    def dying(self, trainer, *arguments):
        original(self, trainer, *arguments)
        if trainer.global_step == 2:
            raise KeyError("stands for whatever ends a process")

    def as_elsewhere(layer, init):
        """Another library may give other factors, with another rest of the base."""
        weight = layer.get_base_layer().weight
        whole = weight.clone()
        split(layer, init)
        factors = [side["default"].weight.data.mul_(-1.5) for side in (layer.lora_A, layer.lora_B)]
        weight.data.copy_(whole - layer.scaling["default"] * factors[1] @ factors[0])

    with monkeypatch.context() as patch:
        patch.setattr(BestAndLast, "on_train_batch_end", dying)
        with pytest.raises(KeyError):
            train("broken", *knobs)
    if other_machine:
        monkeypatch.setattr(splitting, "split", as_elsewhere)
    resumed = RunFolder(glm_lightning.train([f"resume={tmp_path / 'broken'}"]).path)
    expected, got = weights(whole), weights(resumed)
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert resumed.read_report()["metrics"] == whole.read_report()["metrics"]
    expected, got = (load_file(run.artefact("adapter") / "adapter_model.safetensors") for run in (whole, resumed))
    assert all(torch.equal(expected[name], got[name]) for name in expected)


# -- how they learn


def test_ranks_and_scales_by_pattern():
    method = lora(rank=4, alpha=8, rank_pattern={"q_proj": 2}, alpha_pattern={r"layers\.1\.self_attn\.k_proj": 32})
    found = adapted(method)
    assert found["model.layers.0.self_attn.q_proj"] == (2, 4.0)
    assert found["model.layers.0.self_attn.k_proj"] == (4, 2.0)
    assert found["model.layers.1.self_attn.k_proj"] == (4, 8.0)


def test_rank_stabilised_scale():
    assert set(adapted(lora(rank=16, alpha=8, rslora=True)).values()) == {(16, 2.0)}


def test_dora_learns_magnitudes(tmp_path):
    method = lora(dora=True)
    assert any("lora_magnitude_vector" in name for name in method.trained())
    learn(method)
    assert (logits(stock(method, "glm", tmp_path)) - logits(method.network)).abs().max() < 1e-5


def test_the_faster_rate_is_that_of_b():
    method = lora(lr_ratio=16.0)
    method.ingredients = replace(method.ingredients, scheduler=lambda optimizer: None)
    groups = method.configure_optimizers()["optimizer"].param_groups
    rates = {parameter: group["lr"] for group in groups for parameter in group["params"]}
    assert rates.keys() == set(method.trained().values())
    for name, parameter in method.trained().items():
        assert rates[parameter] == pytest.approx(1.6e-1 if ".lora_B." in name else 1e-2)


# -- modules in full


@pytest.mark.parametrize("family", ["glm", "glm4_moe"])
def test_extra_modules_are_trained_in_full_and_saved(family, tmp_path):
    base = network_of(family)
    method = lora(family, targets="attention", extra_modules=["embed_tokens", "lm_head"])
    assert len([name for name in method.trained() if ".modules_to_save." in name]) == 2
    learn(method)
    network = method.network
    assert (network.get_input_embeddings().weight - base.get_input_embeddings().weight).abs().max() > 1e-3
    assert (network.get_output_embeddings().weight - base.get_output_embeddings().weight).abs().max() > 1e-3
    assert (logits(stock(method, family, tmp_path)) - logits(network)).abs().max() < 1e-5
    with method.without_adaptation():
        assert (logits(network) - logits(base)).abs().max() == 0


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("norm", {"model.norm"}),
        (
            r"model\.layers\.0\..*layernorm",
            {"model.layers.0.input_layernorm", "model.layers.0.post_attention_layernorm"},
        ),
    ],
)
def test_a_name_means_the_same_modules_to_peft(name, found):
    trained = [key for key in lora(extra_modules=[name]).trained() if ".modules_to_save." in key]
    assert {key.partition(".modules_to_save.")[0].removeprefix("network.base_model.model.") for key in trained} == found


@pytest.mark.parametrize("name", ["embed_tokens", "lm_head"])
def test_what_is_one_matrix_stays_one(name, tmp_path):
    def tied():
        network = network_of("llama")
        network.config.tie_word_embeddings = True
        network.tie_weights()
        return network

    method = made("lora", tied(), targets="qkv", extra_modules=[name])
    learn(method)
    network = method.network
    assert torch.equal(network.get_input_embeddings().weight, network.get_output_embeddings().weight)
    assert (network.get_input_embeddings().weight - tied().get_input_embeddings().weight).abs().max() > 1e-3
    method.save(tmp_path)
    loaded = peft.PeftModel.from_pretrained(tied(), str(tmp_path))
    assert (logits(loaded) - logits(network)).abs().max() < 1e-5


def test_a_trained_head_has_its_loss_and_gradient():
    method = lora(extra_modules=["lm_head"], targets="qkv")
    sample = batch()
    loss = SFT().loss(method.network, sample).total
    whole = method.network(input_ids=sample.input_ids).logits.flatten(0, 1)[sample.where]
    assert loss.item() == pytest.approx(
        torch.nn.functional.cross_entropy(whole, sample.targets, reduction="sum").item()
    )
    loss.backward()
    assert all(parameter.grad.abs().max() > 0 for name, parameter in method.trained().items() if "lm_head" in name)


# -- what is refused


@pytest.mark.parametrize(
    ("knobs", "pattern"),
    [
        ({"rank": 0}, r"method\.rank is 0: must be 1 or more"),
        ({"rank": 65}, r"method\.rank is 65: the layers that are adapted have ranks of 64 at most"),
        ({"rank": 33, "targets": ["k_proj"]}, r"method\.rank is 33: the layers that are adapted .* 32 at most"),
        ({"alpha": 0}, r"method\.alpha is 0: must be above 0"),
        ({"dropout": 1.0}, r"method\.dropout is 1\.0: must be in \[0, 1\)"),
        ({"targets": []}, r"method\.targets is empty"),
        (
            {"targets": ["q_proj", "query_key_value"]},
            r"holds 'query_key_value': matches no linear layer; there are down_proj",
        ),
        ({"targets": "querry"}, r"is 'querry': matches no linear layer"),
        ({"targets": "(q_proj"}, r"none of all-linear, attention, qkv, and no regular expression"),
        ({"targets": ["embed_tokens"]}, r"'embed_tokens': matches no linear layer"),
        ({"init": "eva"}, r"method\.init is 'eva': it needs data"),
        ({"init": "loftq"}, r"method\.init is 'loftq': .* method=qlora"),
        ({"init": "pisa"}, r"method\.init is 'pisa': must be default"),
        ({"init": "orthogonal", "rank": 3}, r"ranks must be even, not 3"),
        ({"init": "pissa", "dora": True}, r"'pissa' and method\.dora true"),
        ({"init": "olora", "extra_modules": ["lm_head"]}, r"extra_modules do not go with it"),
        ({"init": "pissa", "quantize": "nf4"}, r"quantize=nf4 has rounded"),
        ({"lr_ratio": 0}, r"method\.lr_ratio is 0: must be above 0"),
        ({"rank_pattern": {"qproj": 2}}, r"method\.rank_pattern holds 'qproj': matches no layer"),
        ({"rank_pattern": {"o_proj": 2}, "targets": "qkv"}, r"'o_proj': matches no layer that is adapted"),
        ({"rank_pattern": {"q_proj": 0}}, r"gives 'q_proj' 0: must be 1 or more"),
        ({"alpha_pattern": {"q_proj": 0}}, r"gives 'q_proj' 0: must be above 0"),
        ({"rank_pattern": {"[q_proj": 2}}, r"rank_pattern holds '\[q_proj': no regular expression"),
        ({"extra_modules": ["(norm"]}, r"extra_modules holds '\(norm': no regular expression"),
        ({"experts": True}, r"method\.experts is true: this network has no experts"),
        ({"experts": True, "dropout": 0.1, "family": "glm4_moe"}, r"experts take none; set dropout=0"),
        ({"experts": True, "dora": True, "family": "glm4_moe"}, r"no DoRA for experts"),
        ({"dropout": 0.1, "family": "glm4_moe"}, r"by parameter in a mixture of experts, which takes none"),
        (
            {"extra_modules": ["lm_head"], "family": "chatglm"},
            r"'lm_head': PEFT does not keep .* matrix in this network",
        ),
        ({"extra_modules": ["wte"]}, r"'wte': no module with weights is called so"),
        ({"extra_modules": ["mlp"]}, r"'mlp': model\.layers\.0\.mlp\.\w+ is adapted already"),
        ({"extra_modules": ["mlp"], "targets": "qkv", "quantize": "int8"}, r"'mlp': quantize=int8 has frozen model"),
    ],
)
def test_what_cannot_be_is_refused_by_name(knobs, pattern):
    (problem,) = problems(**knobs)
    assert re.search(pattern, problem), problem


def test_all_mistakes_at_once():
    assert len(problems(rank=0, dropout=2.0, init="eva")) == 3
    assert len(problems(targets=["no_such", "q_proj"], extra_modules=["wte"], rank_pattern={"qproj": 2})) == 3


@pytest.mark.parametrize("family", FAMILIES)
def test_the_names_of_layers_are_those_that_peft_finds(family):
    """`layers.matched` must say what PEFT does, or a check would pass what PEFT refuses."""
    skeleton = skeleton_of(family)
    names = layers.linear(skeleton)
    for targets in ("attention", "qkv"):
        found = layers.matched(layers.resolved(targets, skeleton), names)
        assert set(found) == set(adapted(lora(family, targets=targets)))
