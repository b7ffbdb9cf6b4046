"""AdaLoRA: its penalty once a step, its ranks on their curve, and what is left of them."""

import json

import pytest
import torch
from tiny_families import learn, logits, made, network_of
from tiny_runs import weights

from glm_lightning.methods import adalora
from glm_lightning.methods.base import Method
from glm_lightning.types import UserError

pytestmark = pytest.mark.filterwarnings("ignore:The following rank_pattern keys:RuntimeWarning")

ON_GLM = 12  # six linear layers in each of two layers
KNOBS = ("method=adalora", "trainer.precision=64-true", "callbacks.checkpoints.every_n_steps=1", "optimizer.lr=1e-2")


def values_left(run):
    """Singular values that are not zero, over all updates."""
    return sum(int((tensor != 0).sum()) for name, tensor in weights(run).items() if ".lora_E." in name)


def test_the_penalty_is_that_of_peft():
    method = made("adalora", network_of("glm"), orthogonality=0.7, num_steps=10)
    learn(method)
    network = method.network
    ids = torch.arange(5, 15)[None]
    with_it = network(input_ids=ids, labels=ids).loss
    network.peft_config["default"].orth_reg_weight = 0.0
    without = network(input_ids=ids, labels=ids).loss
    named = {name: p for name, p in network.named_parameters() if ".lora_A." in name or ".lora_B." in name}
    assert (with_it - without).item() == pytest.approx(0.7 * adalora.penalty(named).item(), rel=1e-4)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_the_penalty_is_in_each_steps_gradient_once(train, monkeypatch, accumulate):
    """Its share is the difference of the gradients with and without it, whatever the micro-batches."""
    seen = []
    original = Method.configure_gradient_clipping

    def remember(self, *args, **kwargs):
        seen.append({name: p.grad.clone() for name, p in self.trained().items()})
        named = {n: p for n, p in self.trained().items() if ".lora_A." in n or ".lora_B." in n}
        with torch.enable_grad():
            gradients = torch.autograd.grad(adalora.penalty(named), list(named.values()))
        seen.append(dict(zip(named, gradients, strict=True)))
        original(self, *args, **kwargs)

    monkeypatch.setattr(Method, "configure_gradient_clipping", remember)
    knobs = (*KNOBS, f"trainer.accumulate_grad_batches={accumulate}", "trainer.max_steps=2")
    train("with", *knobs, "method.orthogonality=0.5")
    train("without", *knobs, "method.orthogonality=0.0")
    with_it, of_penalty, _, _, without, *_ = seen
    for name, gradient in of_penalty.items():
        torch.testing.assert_close(with_it[name] - without[name], 0.5 * gradient, atol=1e-10, rtol=1e-8)
    assert max(float(gradient.abs().max()) for gradient in of_penalty.values()) > 1e-3


def test_ranks_follow_the_curve_to_the_target(train, monkeypatch):
    """A cubic curve from the initial to the target rank between warm-up and cool-down, after every optimizer step."""
    budgets = []
    original = adalora.Allocation.on_train_batch_end

    def remember(self, trainer, *arguments):
        original(self, trainer, *arguments)
        if trainer.fit_loop.epoch_loop.batch_progress.current.ready % trainer.accumulate_grad_batches == 0:
            budgets.append(sum(int((e != 0).sum()) for e in self._updates("E").values()))

    monkeypatch.setattr(adalora.Allocation, "on_train_batch_end", remember)
    run = train(
        "run", *KNOBS, "trainer.max_steps=10", "method.init_rank=6", "method.target_rank=2", "method.warmup=2",
        "method.cooldown=2", "trainer.accumulate_grad_batches=2",
    )  # fmt: skip
    curve = [6 * ON_GLM] * 2
    curve += [int((6 - 2) * ON_GLM * (1 - (step - 2) / 6) ** 3 + 2 * ON_GLM) for step in range(3, 9)]
    assert budgets == curve + [2 * ON_GLM] * 2
    assert values_left(run) == 2 * ON_GLM
    saved = json.loads((run.artefact("adapter") / "adapter_config.json").read_text(encoding="utf-8"))
    ranks = {name: sum(values) for name, values in saved["rank_pattern"].items()}
    assert len(ranks) == ON_GLM
    # updates without any keep one, which is zero
    assert sum(ranks.values()) - 2 * ON_GLM == sum(
        int((tensor != 0).sum()) == 0 for name, tensor in weights(run).items() if ".lora_E." in name
    )


def test_what_is_taken_is_what_matters_least():
    """An update whose gradient is largest keeps its values longest."""
    method = made("adalora", network_of("glm"), init_rank=4, target_rank=2, warmup=0, cooldown=0, num_steps=4)
    tuner = method.network.base_model
    favoured = "model.layers.0.self_attn.q_proj"
    for step in range(1, 4):
        for name, parameter in method.network.named_parameters():
            if ".lora_" in name:
                parameter.grad = torch.full_like(parameter, 10.0 if favoured in name else 0.1)
                if ".lora_E." in name and step == 1:
                    torch.nn.init.normal_(parameter)
        tuner.update_and_allocate(step)
    ranks = {name: sum(values) for name, values in tuner.peft_config["default"].rank_pattern.items()}
    (of_favoured,) = (rank for name, rank in ranks.items() if favoured in name)
    assert of_favoured == 4
    assert sum(ranks.values()) < 4 * ON_GLM


def test_an_earlier_checkpoint_is_saved_with_its_own_ranks(tmp_path):
    """The last allocation's ranks would cut values off that an earlier, better step still has."""
    import peft

    method = made("adalora", network_of("glm"), num_steps=10)
    learn(method)
    pattern = {
        name: [False] * 12 for name, _ in method.network.base_model.model.named_parameters() if ".lora_E." in name
    }
    method.network.peft_config["default"].rank_pattern = pattern
    method.save(tmp_path)
    assert method.network.peft_config["default"].rank_pattern is pattern
    loaded = peft.PeftModel.from_pretrained(network_of("glm"), str(tmp_path))
    assert (logits(loaded) - logits(method.network)).abs().max() < 1e-5


def test_a_step_that_float16_skips_does_not_count(monkeypatch):
    """Gradients that are not finite would stay in the running averages for ever."""
    method = made("adalora", network_of("glm"), num_steps=10)
    calls = []
    monkeypatch.setattr(method.network.base_model, "update_and_allocate", calls.append)
    trainer = type("Trainer", (), {"accumulate_grad_batches": 1, "global_step": 3})()
    method._allocation.on_train_batch_end(trainer, method, None, None, 0)
    method._skipped_in_a_row = 1
    method._allocation.on_train_batch_end(trainer, method, None, None, 0)
    assert calls == [3]


@pytest.mark.parametrize(
    ("knobs", "pattern"),
    [
        ({"target_rank": 0}, r"method\.target_rank is 0: must be 1 or more"),
        ({"init_rank": 8}, r"method\.init_rank is 8: must be above method\.target_rank, 8"),
        ({"smoothing": 1.0}, r"method\.smoothing is 1\.0: must be in \(0, 1\)"),
        ({"interval": 0}, r"method\.interval is 0: must be 1 or more"),
        ({"warmup": -0.1}, r"method\.warmup is -0\.1: must be 0 or more"),
        ({"orthogonality": -1}, r"method\.orthogonality is -1: must be 0 or more"),
        ({"warmup": 20, "cooldown": 80, "num_steps": 100}, r"of 100 optimizer steps none is left"),
        ({"num_steps": 1}, r"of 1 optimizer steps none is left"),
    ],
)
def test_what_cannot_be_is_refused_by_name(knobs, pattern):
    with pytest.raises(UserError, match=pattern) as caught:
        made("adalora", **knobs)
    assert len(caught.value.problems) == 1
