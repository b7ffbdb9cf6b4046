"""What every method of conf/method/ promises, on a random tiny GLM."""

import copy
import inspect

import peft
import pytest
import torch
from hydra.utils import get_class
from tiny_runs import ROOT, largest_difference, weights
from transformers import AutoModelForCausalLM, GlmForCausalLM
from transformers.models.glm.modeling_glm import GlmMLP

import glm_lightning
from glm_lightning import config, templates, tokenizers
from glm_lightning.inference.loading import GLM
from glm_lightning.methods.base import Method
from glm_lightning.runs import RunFolder

THREE_STEPS = ("trainer.max_steps=3", "callbacks.checkpoints.every_n_steps=1")
METHODS = sorted(file.stem for file in (ROOT / "conf" / "method").glob("*.yaml"))
QUESTION = [{"role": "user", "content": "who are you"}]


def logits_of(network):
    ids = torch.arange(20, 60)[None]
    training = network.training
    with torch.no_grad():
        logits = network.eval()(input_ids=ids).logits
    network.train(training)
    return logits


def base_names(network):
    """State of the network under the names that the base has for it; what an adapter added is left out."""
    state = {name.removeprefix("base_model.model."): value for name, value in network.state_dict().items()}
    return {name.replace(".base_layer.", "."): value for name, value in state.items() if "lora_" not in name}


class Fitted:
    """A finished run, its live method, and the logits before the first step."""

    def __init__(self, name, method, before, run, base_folder):
        self.name, self.method, self.before, self.run = name, method, before, run
        self.network = method.network
        self.base_folder = base_folder
        self.base = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)


@pytest.fixture(scope="module", params=METHODS)
def fitted(request, tiny_glm, rows, tmp_path_factory):
    """Three steps of the method in float32."""
    folder = tmp_path_factory.mktemp(request.param)
    live, before = [], []
    original = Method.configure_model

    def configure_model(self):
        original(self)
        if not live:
            live.append(self)
            before.append(logits_of(self.network))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Method, "configure_model", configure_model)
        glm_lightning.train([
            f"method={request.param}", "model=local", f"model.path={tiny_glm}", "data=messages", f"data.train={rows}",
            "data.val=8", "data.batch_size=8", "data.max_length=256", f"data.cache_dir={folder / 'cache'}",
            "trainer.max_steps=3", "trainer.precision=32-true", "trainer.accelerator=cpu", "optimizer.lr=1e-2",
            "callbacks.checkpoints.every_n_steps=1", "logger=none", f"run_dir={folder / 'run'}",
        ])  # fmt: skip
    return Fitted(request.param, live[0], before[0], RunFolder(folder / "run"), tiny_glm)


def test_starts_at_the_base(fitted):
    assert torch.equal(fitted.before, logits_of(fitted.base))


def test_learns_something(fitted):
    assert (logits_of(fitted.network) - fitted.before).abs().max() > 1e-3


def test_only_what_is_trained_changes(fitted):
    trained = {name.removeprefix("network.") for name in fitted.method.trained()}
    frozen = {name for name, _ in fitted.network.named_parameters()} - trained
    start = dict(fitted.base.named_parameters())
    now = base_names(fitted.network)
    assert start.keys() <= now.keys()
    for name in frozen:
        plain = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
        assert torch.equal(now[plain], start[plain]), name
    if fitted.method.trains_base:
        assert not frozen
        assert any(not torch.equal(now[name], start[name]) for name in start)
    else:
        assert {name.removeprefix("base_model.model.") for name in trained}.isdisjoint(start)
        assert len(frozen) == len(start)


def test_the_checkpoint_holds_exactly_what_is_trained(fitted):
    assert weights(fitted.run).keys() == fitted.method.trained().keys()


def test_stock_libraries_read_what_is_left_behind(fitted):
    folder = fitted.run.artefact(fitted.method.artefact)
    if fitted.method.artefact == "adapter":
        network = peft.PeftModel.from_pretrained(copy.deepcopy(fitted.base), str(folder))
    else:
        network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        assert isinstance(network, GlmForCausalLM)
    assert (logits_of(network) - logits_of(fitted.network)).abs().max() < 1e-5


def test_merged_equals_unmerged(fitted):
    if fitted.method.artefact != "adapter":
        pytest.skip("nothing to merge")
    folder = fitted.run.artefact("adapter")
    merged = peft.PeftModel.from_pretrained(copy.deepcopy(fitted.base), str(folder)).merge_and_unload()
    assert (logits_of(merged) - logits_of(fitted.network)).abs().max() < 1e-5


def test_without_adaptation_it_is_the_base(fitted):
    trained = logits_of(fitted.network)
    with fitted.method.without_adaptation():
        assert torch.equal(logits_of(fitted.network), logits_of(fitted.base))
    assert torch.equal(logits_of(fitted.network), trained)


def test_what_is_loaded_answers_as_what_was_trained(fitted):
    tokenizer = tokenizers.load(fitted.base_folder)
    live = GLM(
        model=fitted.network.eval(), tokenizer=tokenizer, template=templates.find("auto", tokenizer, "glm")
    ).generate(QUESTION, max_new_tokens=24)
    loaded = glm_lightning.load(fitted.run.path)
    assert live
    assert loaded.generate(QUESTION, max_new_tokens=24) == live
    base = glm_lightning.load(fitted.base_folder)
    assert (logits_of(base.model) - logits_of(loaded.model)).abs().max() > 1e-3


def test_the_yaml_is_the_signature(fitted):
    node = config.compose([f"method={fitted.name}", "model=demo"]).method
    parameters = inspect.signature(get_class(node._target_)).parameters
    assert {key for key in node if key != "_target_"} == parameters.keys() - {"ingredients"}
    assert all(node[key] == p.default for key, p in parameters.items() if key != "ingredients")


def test_number_of_trained_parameters_by_hand(fitted):
    counts = {
        # rank times inputs and outputs of q, k, v, o, gate and up together, down, in each of two layers
        "lora": 2 * 8 * ((64 + 64) + 2 * (64 + 32) + (64 + 64) + (64 + 256) + (128 + 64)),
        "full": sum(parameter.numel() for parameter in fitted.base.parameters()),
    }
    if fitted.name not in counts:
        pytest.skip("not counted by hand")
    trained = sum(parameter.numel() for parameter in fitted.method.trained().values())
    assert trained == counts[fitted.name] == fitted.run.read_report()["trained_parameters"]


@pytest.mark.parametrize("method", METHODS)
def test_bf16_mixed_runs(train, method):
    run = train("mixed", f"method={method}", "trainer.precision=bf16-mixed", *THREE_STEPS)
    assert all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in weights(run).values())


@pytest.mark.parametrize("method", METHODS)
def test_gradient_checkpointing_changes_only_the_work(train, monkeypatch, method):
    forward, calls = GlmMLP.forward, []

    def counting(self, states):
        calls.extend([1] * torch.is_grad_enabled())
        return forward(self, states)

    monkeypatch.setattr(GlmMLP, "forward", counting)
    plain = train("plain", f"method={method}", *THREE_STEPS)
    once = len(calls)
    checkpointed = train("checkpointed", f"method={method}", *THREE_STEPS, "model.gradient_checkpointing=true")
    # two layers, three steps; what is recomputed is computed twice
    assert once == 2 * 3
    assert len(calls) - once == 2 * once
    assert largest_difference(weights(plain), weights(checkpointed)) < 1e-12


@pytest.mark.parametrize("method", METHODS)
def test_early_stopping_ends_a_run(train, method):
    knobs = ("trainer.max_steps=-1", "trainer.max_epochs=6", "callbacks.early_stopping.patience=1")
    run = train("stopped", f"method={method}", *knobs, "callbacks.early_stopping.min_delta=1000.0")
    # the second of six validations, after five steps each, is no improvement
    assert run.read_report()["steps"] == 10
