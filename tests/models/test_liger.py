"""Liger's kernels are put where they fit, and counted; here plain functions stand for them, as there is no GPU."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from transformers import AutoModelForCausalLM, Glm4Config, Glm4MoeConfig, GlmConfig, GPT2Config

from glm_lightning.models import liger
from glm_lightning.types import UserError

SIZES = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 16}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": 1}
EXPERTS = {"moe_intermediate_size": 32, "n_routed_experts": 4, "num_experts_per_tok": 2, "first_k_dense_replace": 1}
IDS = torch.arange(2, 26).reshape(2, 12)


class RMSNorm:
    """As Liger's is called, and as its documentation says that it computes."""

    calls = 0

    @classmethod
    def apply(cls, states, weight, eps, offset, casting_mode, in_place):
        cls.calls += 1
        assert (casting_mode, in_place) == ("llama", False)
        wide = states.float()
        return (weight + offset) * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(states.dtype)


class SiLUMul:
    calls = 0

    @classmethod
    def apply(cls, gate, up):
        cls.calls += 1
        return torch.nn.functional.silu(gate) * up


@pytest.fixture
def kernels(monkeypatch):
    ops = types.ModuleType("liger_kernel.ops")
    ops.LigerRMSNormFunction, ops.LigerSiLUMulFunction = RMSNorm, SiLUMul
    monkeypatch.setitem(sys.modules, "liger_kernel", types.ModuleType("liger_kernel"))
    monkeypatch.setitem(sys.modules, "liger_kernel.ops", ops)
    RMSNorm.calls = SiLUMul.calls = 0


def outcome(network):
    network.zero_grad()
    logits = network(input_ids=IDS, use_cache=False).logits
    logits.logsumexp(-1).sum().backward()
    return [logits.detach(), *(p.grad for p in network.parameters() if p.grad is not None)]


@pytest.mark.parametrize(
    ("config", "norms", "activations"),
    [
        (GlmConfig(**SIZES), 5, 2),
        (Glm4Config(**SIZES), 9, 2),
        (Glm4MoeConfig(**SIZES, **EXPERTS, n_shared_experts=1), 5, 2),  # the dense layer, and the shared expert
    ],
    ids=["glm", "glm4", "glm4_moe"],
)
def test_every_norm_and_activation_that_fits_runs_through_them(kernels, config, norms, activations):
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    before = outcome(network)
    names = list(network.state_dict())
    assert liger.apply(network) == f"Liger kernels compute {norms} RMSNorm and {activations} SwiGLU"
    for ours, wanted in zip(outcome(network), before, strict=True):
        torch.testing.assert_close(ours, wanted)
    assert (RMSNorm.calls, SiLUMul.calls) == (norms, activations)
    assert list(network.state_dict()) == names


def test_a_network_with_nothing_that_fits_is_refused(kernels):
    network = AutoModelForCausalLM.from_config(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=16))
    with pytest.raises(UserError, match=r"no module of GPT2LMHeadModel fits; set model.liger=false"):
        liger.apply(network)


def test_what_is_missing_is_named(monkeypatch):
    assert "for GPUs" in liger.problems("cpu")[0]
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    assert "pip install liger-kernel" in liger.problems("cuda")[0]
