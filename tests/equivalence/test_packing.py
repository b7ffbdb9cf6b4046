"""Samples that share a row are as if each were alone."""

from __future__ import annotations

import pytest
import torch
from test_split import validation_losses
from tiny_runs import largest_difference, weights
from transformers import AutoModelForCausalLM, Glm4Config, Glm4MoeConfig, GlmConfig, LlamaConfig

from glm_lightning.models import training_attention
from glm_lightning.objectives.supervised import refuse_leaks, token_sums
from glm_lightning.types import IGNORE, Batch, UserError

SMALL = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 16}
SMALL |= {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": 1}
EXPERTS = {"moe_intermediate_size": 32, "n_routed_experts": 4, "num_experts_per_tok": 2, "first_k_dense_replace": 1}
CONFIGS = {
    "glm": GlmConfig(**SMALL),
    "glm4": Glm4Config(**SMALL),
    "glm4_moe": Glm4MoeConfig(**SMALL, **EXPERTS, n_shared_experts=1),
    "llama": LlamaConfig(**SMALL),
}
SAMPLES = [torch.arange(3, 3 + length) % 90 + 2 for length in (11, 5, 17, 8)]


def network(config, attention="sdpa"):
    torch.manual_seed(0)
    # the experts' grouped product has no float64
    experts = {"experts_implementation": "eager"} if config.model_type == "glm4_moe" else {}
    made = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.float64, **experts)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.2)
    return made.train()


def batch(rows, width):
    """Rows of samples; the first token of each sample is not predicted."""
    ids, labels = torch.zeros(len(rows), width, dtype=torch.long), torch.full((len(rows), width), IGNORE)
    positions = torch.arange(width).repeat(len(rows), 1)
    for number, row in enumerate(rows):
        start = 0
        for sample in row:
            stop = start + len(sample)
            ids[number, start:stop], labels[number, start + 1 : stop] = sample, sample[1:]
            positions[number, start:] = torch.arange(width - start)
            start = stop
    lengths = torch.tensor([sum(map(len, row)) for row in rows])
    packed = positions if any(len(row) > 1 for row in rows) else None
    return Batch.of(ids, labels, lengths, step_tokens=1, rows=range(len(rows)), position_ids=packed)


@pytest.mark.parametrize("attention", ["sdpa", training_attention.NAME, "eager"])
@pytest.mark.parametrize("family", CONFIGS)
def test_loss_and_gradients_are_those_of_single_samples(family, attention):
    made = network(CONFIGS[family], attention)
    results = []
    for rows, width in (([[s] for s in SAMPLES], 24), ([SAMPLES[:2], SAMPLES[2:]], 32), ([SAMPLES], 48)):
        made.zero_grad()
        sums = token_sums(made, batch(rows, width))
        sums.total.backward()
        results.append((sums.total.item(), {n: p.grad for n, p in made.named_parameters() if p.grad is not None}))
    for total, gradients in results[1:]:
        assert total == pytest.approx(results[0][0], rel=1e-12)
        assert gradients.keys() == results[0][1].keys()
        assert largest_difference(gradients, results[0][1]) < 1e-9


@pytest.mark.parametrize("family", CONFIGS)
def test_families_that_keep_samples_apart_are_let_through(family):
    refuse_leaks(network(CONFIGS[family]), batch([SAMPLES[:2], SAMPLES[2:]], 32))


def test_a_network_that_mixes_samples_is_refused(monkeypatch):
    """GLM with a mask that does not look at positions, as some architectures make it."""
    from transformers.models.glm import modeling_glm

    original = modeling_glm.create_causal_mask
    monkeypatch.setattr(modeling_glm, "create_causal_mask", lambda **given: original(**{**given, "position_ids": None}))
    made, packed = network(CONFIGS["glm"]), batch([SAMPLES], 48)
    with pytest.raises(UserError, match=r"GlmForCausalLM mixes the samples of a row .*data.packing=false"):
        refuse_leaks(made, packed)
    refuse_leaks(made, batch([[s] for s in SAMPLES], 24))


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_packed_run_is_the_unpacked_one(train, method):
    plain = train("plain", f"method={method}")
    packed = train("packed", f"method={method}", "data.packing=true")
    split = train("split", f"method={method}", "data.packing=true", "trainer.accumulate_grad_batches=3")
    for run in (packed, split):
        assert largest_difference(weights(plain), weights(run)) < 1e-10
        assert validation_losses(plain) == pytest.approx(validation_losses(run), rel=1e-6)
