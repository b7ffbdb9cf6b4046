"""IA3: which activations are scaled, family by family."""

import pytest
import torch
from tiny_families import FAMILIES, MIXTURES, ids, made, network_of, skeleton_of

from glm_lightning.types import UserError

OUTPUTS = {"chatglm": {"query_key_value"}, "glm4_moe_lite": {"kv_b_proj"}}


@pytest.mark.parametrize("family", FAMILIES)
def test_keys_values_and_inner_activations_are_scaled(family):
    method = made("ia3", network_of(family))
    shapes = {
        name.partition(".ia3_l")[0].rpartition(".")[2]: parameter.shape for name, parameter in method.trained().items()
    }
    inner = "dense_4h_to_h" if family == "chatglm" else "down_proj"
    assert shapes.keys() == OUTPUTS.get(family, {"k_proj", "v_proj"}) | {inner}
    # a row vector scales inputs, a column the outputs
    assert {name for name, shape in shapes.items() if shape[0] == 1} == {inner}
    assert bool(method.notices) == (family in MIXTURES)


def test_the_inner_activations_of_the_fused_gate_are_what_is_scaled():
    """gate_up_proj makes twice the inner width; the product of its halves is what the paper scales."""
    method = made("ia3", network_of("glm"), outputs=[], inputs=["down_proj"])
    base = network_of("glm")
    scale = torch.linspace(0.5, 2, 128)
    with torch.no_grad():
        for parameter in method.trained().values():
            parameter.copy_(scale)
        for layer in base.model.layers:
            layer.mlp.down_proj.weight.mul_(scale)
    got, expected = (network.eval()(input_ids=ids()).logits for network in (method.network, base))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("knobs", "pattern"),
    [
        ({"outputs": ["keys"]}, r"method\.outputs holds 'keys': matches no linear layer"),
        ({"inputs": ["fc3"]}, r"method\.inputs holds 'fc3': matches no linear layer"),
        ({"inputs": ["k_proj"]}, r"method\.inputs and method\.outputs both lead to .*layers\.0\.self_attn\.k_proj"),
        ({"inputs": ["self_attn.k_proj"], "outputs": ["k_proj"]}, r"both lead to .*layers\.0\.self_attn\.k_proj"),
        ({"inputs": [], "outputs": []}, r"method\.outputs and method\.inputs are empty: nothing is scaled"),
    ],
)
def test_what_cannot_be_is_refused_by_name(knobs, pattern):
    with pytest.raises(UserError, match=pattern):
        made("ia3", **knobs).examine(skeleton_of("glm"))


def test_an_unknown_family_must_name_its_layers():
    from transformers import AutoModelForCausalLM, GPTNeoXConfig

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(GPTNeoXConfig(**sizes, vocab_size=32))
    # its attention is called query_key_value as well, its feed-forward block dense_4h_to_h
    made("ia3").examine(skeleton)
    for module in skeleton.modules():
        for old, new in (("query_key_value", "mixer"), ("dense_4h_to_h", "out")):
            if old in module._modules:
                module._modules[new] = module._modules.pop(old)
    with pytest.raises(UserError) as caught:
        made("ia3").examine(skeleton)
    assert [problem.split(" is ")[0] for problem in caught.value.problems] == ["method.outputs", "method.inputs"]
    assert all("mixer" in problem for problem in caught.value.problems)
