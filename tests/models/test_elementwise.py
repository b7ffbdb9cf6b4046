"""Norms, gated activations and rotary positions compute what transformers wrote, and keep less."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from test_liger import EXPERTS, SIZES
from torch import nn
from transformers import AutoModelForCausalLM, Glm4Config, Glm4MoeConfig, GlmConfig, GPT2Config
from transformers.models.glm import modeling_glm
from transformers.models.glm.modeling_glm import GlmMLP

from glm_lightning.models import cpu_rotary, elementwise

CONFIGS = {
    "glm": (GlmConfig(**SIZES), {"RMSNorm": 5, "SwiGLU": 2}),
    "glm_turned_whole": (GlmConfig(**SIZES, partial_rotary_factor=1.0), {"RMSNorm": 5, "SwiGLU": 2}),
    "glm4": (Glm4Config(**SIZES), {"RMSNorm": 9, "SwiGLU": 2}),
    "glm4_moe": (Glm4MoeConfig(**SIZES, **EXPERTS, n_shared_experts=1), {"RMSNorm": 5, "SwiGLU": 2}),
}
IDS = torch.arange(2, 50).reshape(4, 12)


def network_of(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(CONFIGS[name][0], dtype=torch.float32)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) / 8)
    return network.to(dtype)


def outcome(network: nn.Module) -> list[torch.Tensor]:
    """Logits, and the gradients of all weights."""
    network.zero_grad()
    logits = network(input_ids=IDS, use_cache=False).logits
    logits.double().logsumexp(-1).sum().backward()
    return [logits.detach(), *(p.grad.clone() for p in network.parameters() if p.grad is not None)]


def errors(found: list[torch.Tensor], exact: list[torch.Tensor]) -> torch.Tensor:
    """Relative, of each tensor."""
    return torch.tensor(
        [(a.double() - b.double()).norm() / b.double().norm() for a, b in zip(found, exact, strict=True)]
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_the_same_logits_and_gradients(name: str) -> None:
    network = network_of(name)
    before = outcome(network)
    assert elementwise.use(network) == CONFIGS[name][1]
    lean = outcome(network)
    assert torch.equal(lean[0], before[0])
    assert errors(lean, before).max() < 5e-6
    cpu_rotary.use(network)
    assert all(map(torch.equal, outcome(network), lean))


@pytest.mark.parametrize("name", ["glm", "glm4"])
def test_in_16_bits_no_farther_from_the_exact_gradients_than_as_written(name: str) -> None:
    network = network_of(name, torch.bfloat16)
    written = outcome(network)
    exact = outcome(network.double())
    network.bfloat16()
    elementwise.use(network)
    cpu_rotary.use(network)
    assert errors(outcome(network), exact).mean() < 1.05 * errors(written, exact).mean()


def test_gradients_of_gated_activations() -> None:
    gate, up = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(elementwise.silu_mul, (gate, up))
    both = torch.cat([gate, up], -1).detach().requires_grad_()
    assert torch.autograd.gradcheck(elementwise.silu_mul_of_halves, (both,))


def test_less_is_kept_for_the_backward_pass() -> None:
    network = network_of("glm")

    def kept() -> int:
        found: dict[int, int] = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            logits = network(input_ids=IDS, use_cache=False).logits
        del logits
        return sum(found.values())

    before = kept()
    elementwise.use(network)
    cpu_rotary.use(network)
    assert kept() < 0.9 * before


def test_what_computes_something_else_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not elementwise.use(
        AutoModelForCausalLM.from_config(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=16))
    )
    gelu = AutoModelForCausalLM.from_config(GlmConfig(**SIZES, hidden_act="gelu"))
    assert elementwise.use(gelu) == {"RMSNorm": 5}
    monkeypatch.setattr(GlmMLP, "forward", lambda self, states: states)
    assert elementwise.use(network_of("glm")) == {"RMSNorm": 5}


@pytest.mark.parametrize("width", [16, 10])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_positions_and_their_gradients_are_of_the_same_bits(dtype: torch.dtype, width: int) -> None:
    states = [torch.randn(3, 33, heads, 16).to(dtype).transpose(1, 2).requires_grad_() for heads in (4, 2)]
    angles = torch.randn(3, 33, width)
    tables = angles.cos().to(dtype), angles.sin().to(dtype)
    grads = [torch.randn_like(each) for each in states]
    found = cpu_rotary._apply(modeling_glm.apply_rotary_pos_emb, *states, *tables)
    wanted = modeling_glm.apply_rotary_pos_emb(*states, *tables)
    assert all(map(torch.equal, found, wanted))
    assert all(map(torch.equal, torch.autograd.grad(found, states, grads), torch.autograd.grad(wanted, states, grads)))


@pytest.mark.parametrize("cut", [lambda states: states[..., 1:], lambda states: states.mT.contiguous().mT])
def test_pairs_may_lie_anywhere_in_memory(cut: Callable[[torch.Tensor], torch.Tensor]) -> None:
    states = cut(torch.randn(2, 4, 9, 17).bfloat16())[..., :16]
    angles = torch.randn(2, 9, 16)
    tables = angles.cos().bfloat16(), angles.sin().bfloat16()
    found = cpu_rotary._apply(modeling_glm.apply_rotary_pos_emb, states, states, *tables)
    assert all(map(torch.equal, found, modeling_glm.apply_rotary_pos_emb(states, states, *tables)))


def test_positions_are_rounded_once_to_the_type_of_states_under_wider_angles() -> None:
    states, angles = torch.randn(1, 2, 9, 16).bfloat16(), torch.randn(1, 9, 8)
    found, _ = cpu_rotary._apply(modeling_glm.apply_rotary_pos_emb, states, states, angles.cos(), angles.sin())
    wanted, _ = modeling_glm.apply_rotary_pos_emb(states, states, angles.cos(), angles.sin())
    assert wanted.dtype == torch.float32
    assert torch.equal(found, wanted.bfloat16())


def test_positions_on_another_device_are_turned_as_written() -> None:
    network = network_of("glm").to("meta")
    cpu_rotary.use(network)
    cpu_rotary.use(network)  # once more changes nothing
    attention, states = network.model.layers[0].self_attn, torch.empty(1, 3, SIZES["hidden_size"], device="meta")
    angles = network.model.rotary_emb(states, torch.zeros(1, 3, dtype=torch.long, device="meta"))
    assert attention(states, position_embeddings=angles)[0].shape == states.shape
    turn = attention.forward.__globals__["apply_rotary_pos_emb"]
    assert turn.func is cpu_rotary._apply
    assert turn.args == (modeling_glm.apply_rotary_pos_emb,)


@pytest.mark.parametrize("name", ["glm", "glm4"])
def test_other_networks_of_the_process_compute_as_written(name: str) -> None:
    network, other = (network_of(name, torch.bfloat16) for _ in range(2))
    written = outcome(other)
    elementwise.use(network)
    cpu_rotary.use(network)
    assert not all(map(torch.equal, outcome(network), written))  # norms are rounded less often
    assert all(map(torch.equal, outcome(other), written))
