"""Samples that share a row are as if each were alone."""

from __future__ import annotations

import pytest
from packed_rows import CONFIGS, SAMPLES, batch, network
from tiny_runs import largest_difference, validation_losses, weights

from glm_lightning.models import training_attention
from glm_lightning.objectives.supervised import refuse_leaks, token_sums
from glm_lightning.types import UserError


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
