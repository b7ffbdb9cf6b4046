from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear
from torch import nn
from transformers import AutoModelForCausalLM

from glm_lightning.methods.fused import FusedLinear, fuse


@pytest.fixture
def adapted(tiny_glm: Path) -> PeftModel:
    """LoRA on every linear layer, in float64, with an update that is not zero; one layer with a bias of its own."""
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_pretrained(tiny_glm, dtype=torch.float64)
    config = LoraConfig(r=4, lora_alpha=12, target_modules="all-linear", task_type="CAUSAL_LM")
    network = get_peft_model(network, config)
    for name, parameter in network.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn_like(parameter, dtype=torch.float64) / 8
    return network


def outcome(network: nn.Module, ids: torch.Tensor) -> list[torch.Tensor]:
    """Logits and all gradients, that of the embedding's output among them."""
    network.zero_grad()
    embedded = network.get_input_embeddings()(ids).detach().requires_grad_()
    logits = network(inputs_embeds=embedded, use_cache=False).logits
    logits.float().logsumexp(-1).sum().backward()
    return [logits.detach(), embedded.grad, *(p.grad for p in network.parameters() if p.grad is not None)]


def largest(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> float:
    return max(
        ((a.double() - b.double()).norm() / b.double().norm()).item() for a, b in zip(found, wanted, strict=True)
    )


IDS = torch.arange(3, 27).reshape(2, 12)


def test_same_logits_and_gradients_as_pefts_own(adapted: PeftModel) -> None:
    before = outcome(adapted, IDS)
    fuse(adapted)
    assert sum(isinstance(m, FusedLinear) for m in adapted.modules()) == 2 * 6
    assert largest(outcome(adapted, IDS), before) < 1e-12


def test_gradient_checkpointing(adapted: PeftModel) -> None:
    before = outcome(adapted, IDS)
    fuse(adapted)
    adapted.activation_checkpointing_enable({"use_reentrant": False})
    adapted.train()
    assert largest(outcome(adapted, IDS), before) < 1e-12


def test_under_autocast_it_is_nearer_to_the_exact_gradients_than_pefts_own(adapted: PeftModel) -> None:
    exact = outcome(adapted, IDS)
    for parameter in adapted.parameters():
        parameter.data = parameter.data.float() if parameter.requires_grad else parameter.data.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        own = outcome(adapted, IDS)
        fuse(adapted)
        ours = outcome(adapted, IDS)
    assert largest(ours, exact) < 1.2 * largest(own, exact)
    assert all(p.grad.dtype == torch.float32 for p in adapted.parameters() if p.grad is not None)


def test_switched_off_merged_and_removed_it_is_pefts(adapted: PeftModel) -> None:
    fuse(adapted)
    with torch.no_grad():
        live = adapted(IDS).logits
        with adapted.disable_adapter():
            base = adapted(IDS).logits
        adapted.merge_adapter()
        merged = adapted(IDS).logits
        adapted.unmerge_adapter()
        plain = adapted.merge_and_unload()
        removed = plain(IDS).logits
    assert (live - base).abs().max() > 1e-3
    assert largest([merged, removed], [live, live]) < 1e-6  # the merge goes through PEFT's float32
    assert not any(isinstance(m, Linear) for m in plain.modules())


@pytest.mark.parametrize("knobs", [{"lora_dropout": 0.5}, {"use_dora": True}, {"lora_bias": True}])
def test_other_layers_stay_as_they_are(tiny_glm: Path, knobs: dict[str, object]) -> None:
    network = AutoModelForCausalLM.from_pretrained(tiny_glm)
    network = get_peft_model(network, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM", **knobs))
    fuse(network)
    assert not any(isinstance(m, FusedLinear) for m in network.modules())


def test_a_layer_whose_own_weights_are_trained_stays_as_it_is(adapted: PeftModel) -> None:
    for parameter in adapted.parameters():
        parameter.requires_grad_(True)
    fuse(adapted)
    assert not any(isinstance(m, FusedLinear) for m in adapted.modules())
