"""What is merged part by part is what PEFT merges as a whole, bit for bit; and what is measured is what there is."""

import copy

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_families import FAMILIES, MIXTURES, ids, learn, logits, made, network_of, node_of, quantized
from transformers import AutoModelForCausalLM

from glm_lightning.export.merging import Merging, Wanted
from glm_lightning.export.walking import Probe
from glm_lightning.models import Source
from glm_lightning.types import UserError

pytestmark = [
    # peft 0.21 says so of adapters that it loads, and uses the keys all the same
    pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:Input and output embeddings are no longer tied:UserWarning"),
    pytest.mark.filterwarnings("ignore:Model (with|has) `tie_word_embeddings=True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings=True`:UserWarning"),
]

PROMPTS = [row.tolist()[: 14 - 2 * i] for i, row in enumerate(ids(3, 14, seed=9))]
"""Of several lengths; ChatGLM-6B's mask and positions follow from the control tokens inside."""


def merge(base, adapter, out, *, held=None, origin=None, **wanted):
    """The tensors that are written, and what is measured; ``held`` is how the base was quantised when it learned."""
    source = Source(path=str(base), quantize=held)
    merging = Merging(source, adapter, Wanted(**wanted), origin=source if origin is None else Source(path=str(origin)))
    out.mkdir()
    measured = merging.write(out, Probe.of(PROMPTS, pad_id=0), progress=lambda done: None)
    return tensors(out), measured


def tensors(folder):
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def by_peft(network, adapter, out):
    """What PEFT merges and transformers writes, from the whole network in memory."""
    merged = peft.PeftModel.from_pretrained(copy.deepcopy(network), str(adapter)).merge_and_unload(safe_merge=True)
    merged.save_pretrained(out)
    return tensors(out)


def same(one, other):
    assert one.keys() == other.keys()
    return [name for name in one if one[name].dtype != other[name].dtype or not torch.equal(one[name], other[name])]


def trained(folder, name, family, *, dtype=torch.float32, **knobs):
    """Folders of a base and of what three steps have made of it; the network is that which learned."""
    quantize = node_of(name).quantize
    network_of(family, dtype=dtype).save_pretrained(folder / "base")
    fresh = network_of(family) if quantize is None else quantized(family, quantize, folder / "held")
    method = made(name, fresh, **knobs)
    learn(method)
    (folder / "trained").mkdir()
    method.save(folder / "trained")
    return folder / "base", folder / "trained", method.network


ADAPTERS = [(name, family) for name in ("lora", "adalora", "ia3") for family in FAMILIES]


@pytest.mark.parametrize(("name", "family"), ADAPTERS, ids="-".join)
def test_it_is_what_peft_merges(name, family, tmp_path):
    base, adapter, network = trained(tmp_path, name, family)
    written, measured = merge(base, adapter, tmp_path / "out")
    assert not same(written, by_peft(network_of(family), adapter, tmp_path / "peft"))
    live = logits(network, torch.tensor(PROMPTS[:1]))
    (tmp_path / "out" / "config.json").write_bytes((base / "config.json").read_bytes())
    after = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out"), torch.tensor(PROMPTS[:1]))
    assert (live - after).abs().max() <= measured.difference + 1e-6
    assert measured.difference < 1e-5
    assert (measured.agreeing, measured.tokens, measured.prompts) == (36, 36, 3)
    assert measured.from_quantized is None


KNOBS = {
    "dora": {"dora": True},
    "rslora": {"rslora": True},
    "pissa": {"init": "pissa"},
    "olora": {"init": "olora"},
    "orthogonal": {"init": "orthogonal"},
    "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.mlp.down_proj": 3}},
    "embedding and head": {"extra_modules": ["embed_tokens", "lm_head"]},
    "norms": {"extra_modules": ["norm", "input_layernorm"], "targets": "qkv"},
}


@pytest.mark.parametrize("knobs", KNOBS.values(), ids=KNOBS.keys())
def test_every_kind_of_lora(knobs, tmp_path):
    base, adapter, _ = trained(tmp_path, "lora", "glm", **knobs)
    written, measured = merge(base, adapter, tmp_path / "out")
    assert not same(written, by_peft(network_of("glm"), adapter, tmp_path / "peft"))
    assert measured.difference < 1e-5


@pytest.mark.parametrize("family", MIXTURES)
def test_experts(family, tmp_path):
    base, adapter, _ = trained(tmp_path, "lora", family, experts=True, targets="attention")
    written, measured = merge(base, adapter, tmp_path / "out")
    assert not same(written, by_peft(network_of(family), adapter, tmp_path / "peft"))
    assert any(".mlp.experts.3.gate_proj." in name for name in written), "experts lie apart in files"
    assert measured.difference < 1e-5


def stored_by_peft(config, family, folder, *, seed=1, **network):
    """A base and an adapter that PEFT alone has made, with random numbers in place of what is learned."""
    network = network_of(family) if not network else tied_llama()
    network.save_pretrained(folder / "base")
    adapted = peft.get_peft_model(copy.deepcopy(network), config)
    torch.manual_seed(seed)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn_like(parameter) * 0.05
    adapted.save_pretrained(folder / "adapter", save_embedding_layers=False)
    return folder / "base", folder / "adapter", network


def tied_llama():
    config = copy.deepcopy(network_of("llama").config)
    config.tie_word_embeddings = True
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config)


THEIRS = {
    "a beginning that is a part of the base": {"init_lora_weights": "pissa", "target_modules": "all-linear"},
    "olora": {"init_lora_weights": "olora", "target_modules": ["q_proj", "down_proj"]},
    "an update of the embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "tokens": {"target_modules": ["v_proj"], "trainable_token_indices": [3, 5]},
    "the head": {"target_modules": ["lm_head", "o_proj"]},
}


@pytest.mark.parametrize("knobs", THEIRS.values(), ids=THEIRS.keys())
def test_adapters_of_other_tools(knobs, tmp_path):
    base, adapter, network = stored_by_peft(peft.LoraConfig(r=4, task_type="CAUSAL_LM", **knobs), "glm", tmp_path)
    written, measured = merge(base, adapter, tmp_path / "out")
    assert not same(written, by_peft(network, adapter, tmp_path / "peft"))
    assert measured.difference < 1e-5


@pytest.mark.parametrize("targets", [["q_proj"], ["lm_head", "q_proj"], ["embed_tokens"]], ids=",".join)
def test_one_matrix_stays_one_unless_half_of_it_has_learned(targets, tmp_path):
    config = peft.LoraConfig(r=4, task_type="CAUSAL_LM", target_modules=targets)
    base, adapter, network = stored_by_peft(config, "llama", tmp_path, tied=True)
    source = Source(path=str(base))
    merging = Merging(source, adapter, Wanted(), origin=source)
    (tmp_path / "out").mkdir()
    measured = merging.write(tmp_path / "out", Probe.of(PROMPTS, pad_id=0), progress=lambda done: None)
    assert measured.difference < 1e-5
    apart = targets != ["q_proj"]
    assert ("lm_head.weight" in tensors(tmp_path / "out")) == apart
    assert merging.streamed.network.config.tie_word_embeddings != apart
    merging.streamed.network.config.save_pretrained(tmp_path / "out")
    live = peft.PeftModel.from_pretrained(network, str(adapter))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert (logits(again) - logits(live)).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once_and_the_rest_is_untouched(dtype, tmp_path):
    base, adapter, _ = trained(tmp_path, "lora", "glm", dtype=dtype, targets="qkv")
    written, measured = merge(base, adapter, tmp_path / "out")
    # in float32 from the stored weights, and rounded in the end
    exact = by_peft(network_of("glm", dtype=dtype).float(), adapter, tmp_path / "peft")
    assert not same(written, {name: tensor.to(dtype) for name, tensor in exact.items()})
    changed = same(written, tensors(base))
    assert changed
    assert all(name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")) for name in changed)
    assert measured.unrounded < 1e-5 < measured.difference < 0.2


@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
def test_what_learned_on_a_quantised_base_goes_into_the_whole_one(kind, tmp_path):
    base = tmp_path / "base"
    network_of("glm").save_pretrained(base)
    method = made("qlora", quantized("glm", kind, tmp_path / "held"), quantize=kind)
    learn(method)
    method.save(tmp_path / "trained")
    written, measured = merge(base, tmp_path / "trained", tmp_path / "out", held=kind)
    assert not same(written, by_peft(network_of("glm"), tmp_path / "trained", tmp_path / "peft"))
    assert measured.difference < 1e-5
    merged = peft.PeftModel.from_pretrained(network_of("glm"), str(tmp_path / "trained"))
    probe = Probe.of(PROMPTS, pad_id=0)
    with torch.no_grad():  # all rows together: int8 looks for outliers in all of them
        one, other = (n.eval()(probe.ids, attention_mask=probe.mask).logits for n in (merged, method.network))
    actual = float((one - other)[probe.mask.bool()].abs().max())
    assert measured.from_quantized == pytest.approx(actual, rel=1e-3)
    assert actual > 1e-3


@pytest.mark.parametrize("name", ["lora", "ia3", "full", "freeze"])
@pytest.mark.parametrize("share", [0.7, 0.25])
def test_a_blend_lies_between_the_base_and_what_was_trained(name, share, tmp_path):
    base, result, _ = trained(tmp_path, name, "glm4")
    whole = result if name in ("full", "freeze") else None
    end, _ = merge(whole or base, None if whole else result, tmp_path / "whole")
    written, measured = merge(
        whole or base, None if whole else result, tmp_path / "out", blend=share, origin=base if whole else None
    )
    start = tensors(base)
    assert written.keys() == start.keys()
    for key, tensor in written.items():
        assert torch.allclose(tensor, start[key] + share * (end[key] - start[key]), atol=1e-6), key
    assert measured.difference > 1e-4
    assert same(written, start)


def test_a_whole_model_comes_out_as_it_is(tmp_path):
    _, result, _ = trained(tmp_path, "freeze", "glm4_moe")
    written, measured = merge(result, None, tmp_path / "out")
    assert not same(written, tensors(result))
    assert measured.difference == 0


def test_another_type_is_rounded_and_a_routing_bias_keeps_its_own(tmp_path):
    base, adapter, _ = trained(tmp_path, "lora", "glm4_moe")
    exact, _ = merge(base, adapter, tmp_path / "exact")
    written, measured = merge(base, adapter, tmp_path / "out", dtype="bfloat16")
    bias = {name for name in written if name.endswith("e_score_correction_bias")}
    assert {written[name].dtype for name in bias} == {torch.float32}
    assert not same(written, {n: tensor if n in bias else tensor.bfloat16() for n, tensor in exact.items()})
    assert measured.difference > 1e-3


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("family", ["glm", "glm4", "llama"])
def test_few_bits_are_those_that_transformers_makes(kind, family, tmp_path):
    base, adapter, _ = trained(tmp_path, "lora", family, dtype=torch.bfloat16)
    whole, _ = merge(base, adapter, tmp_path / "whole")
    written, measured = merge(base, adapter, tmp_path / "out", quantize=kind)
    (tmp_path / "whole" / "config.json").write_bytes((base / "config.json").read_bytes())
    source = Source(path=str(tmp_path / "whole"), quantize=kind)
    network = source.load()
    network.save_pretrained(tmp_path / "theirs")
    assert not same(written, tensors(tmp_path / "theirs"))
    assert whole.keys() < written.keys()
    assert measured.difference > 1e-3


def test_files_are_no_larger_than_wanted(tmp_path):
    base, adapter, _ = trained(tmp_path, "lora", "glm4_moe")
    whole, _ = merge(base, adapter, tmp_path / "whole")
    assert [file.name for file in (tmp_path / "whole").iterdir()] == ["model.safetensors"]
    parts, _ = merge(base, adapter, tmp_path / "parts", shard_size=60_000)
    assert not same(parts, whole)
    files = sorted((tmp_path / "parts").glob("*.safetensors"))
    assert len(files) > 5
    assert files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    assert all(sum(t.nbytes for t in load_file(file).values()) <= 60_000 for file in files)
    (tmp_path / "parts" / "config.json").write_bytes((base / "config.json").read_bytes())
    again, report = AutoModelForCausalLM.from_pretrained(tmp_path / "parts", output_loading_info=True)
    assert not any(report.values())
    assert again.num_parameters() == network_of("glm4_moe").num_parameters()


def test_what_the_network_leaves_aside_is_handed_on(tmp_path):
    """Such as the layers that predict several tokens at once, which other programs use."""
    base, adapter, _ = trained(tmp_path, "lora", "glm4_moe")
    state = tensors(base)
    state["model.layers.46.eh_proj.weight"] = torch.randn(3, 4).bfloat16()
    save_file(state, base / "model.safetensors", metadata={"format": "pt"})
    written, _ = merge(base, adapter, tmp_path / "out")
    assert torch.equal(written["model.layers.46.eh_proj.weight"], state["model.layers.46.eh_proj.weight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("model.layers.1.mlp.down_proj.weight"), "files lack 1 weights .*layers.1.mlp.down"),
        (lambda state: state.update({"x.y": torch.zeros(1)}), "files hold 1 weights that the network .* lacks: x.y"),
        (
            lambda state: state.update({"model.norm.weight": torch.zeros(3)}),
            r"another shape .*model.norm.weight \(3,\)",
        ),
    ],
)
def test_files_that_do_not_fit_are_refused(change, message, tmp_path):
    base, adapter, _ = trained(tmp_path, "lora", "glm")
    state = tensors(base)
    change(state)
    save_file(state, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=message):
        merge(base, adapter, tmp_path / "out")


def test_a_broken_adapter_is_not_merged(tmp_path):
    base, adapter, _ = trained(tmp_path, "lora", "glm")
    state = load_file(adapter / "adapter_model.safetensors")
    next(iter(state.values()))[0, 0] = torch.inf
    save_file(state, adapter / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"cannot be merged into model.layers.\d.*NaNs"):
        merge(base, adapter, tmp_path / "out")
