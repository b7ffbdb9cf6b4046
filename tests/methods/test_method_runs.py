"""What every method of conf/method/ promises of whole runs, on a random tiny GLM."""

import inspect
import json
import os
import subprocess
import sys

import pytest
import torch
from hydra.utils import get_class
from tiny_families import node_of
from tiny_runs import ROOT, dying, largest_difference, weights
from transformers.models.glm.modeling_glm import GlmAttention

import glm_lightning
from glm_lightning import config
from glm_lightning.runs import RunFolder
from glm_lightning.types import UserError

# peft 0.21 says so of every AdaLoRA adapter that it loads, and uses the keys all the same
pytestmark = pytest.mark.filterwarnings("ignore:The following rank_pattern keys:RuntimeWarning")

METHODS = sorted(file.stem for file in (ROOT / "conf" / "method").glob("*.yaml"))
CHECKPOINTS = "callbacks.checkpoints.every_n_steps=1"


def without_dropout(name):
    """Overrides of a method whose arithmetic shall not depend on how a step is split, in the widest type it takes."""
    node = node_of(name)
    dropout = ["method.dropout=0.0"] if "dropout" in node.method else []
    return [f"method={name}", *dropout, *([] if node.quantize is None else ["trainer.precision=32-true"])]


def tolerance(name):
    """Difference of weights that is rounding."""
    return 1e-10 if node_of(name).quantize is None else 1e-5


@pytest.fixture(params=METHODS)
def name(request):
    return request.param


def test_the_yaml_is_the_signature(name):
    node = node_of(name).method
    parameters = inspect.signature(get_class(node._target_)).parameters
    assert {key for key in node if key != "_target_"} == parameters.keys() - {"ingredients"}
    assert all(node[key] == p.default for key, p in parameters.items() if key != "ingredients")


def test_a_run_leaves_what_answers_as_the_live_network(train, name, monkeypatch):
    """One run with bf16-mixed, recomputed activations, and early stopping after the second of six validations."""
    forward, calls = GlmAttention.forward, []

    def counting(self, hidden_states, **kwargs):
        # the estimate before a run computes on tensors without contents
        calls.extend([1] * (torch.is_grad_enabled() and type(hidden_states) is torch.Tensor))
        return forward(self, hidden_states, **kwargs)

    monkeypatch.setattr(GlmAttention, "forward", counting)
    run = train(
        "run", f"method={name}", "trainer.precision=bf16-mixed", "model.gradient_checkpointing=true",
        "trainer.max_steps=-1", "trainer.max_epochs=6", "callbacks.early_stopping.patience=1",
        "callbacks.early_stopping.min_delta=1000.0",
    )  # fmt: skip
    report = run.read_report()
    assert report["steps"] == 10
    # two layers, ten steps, each computed twice
    assert len(calls) == 2 * 2 * 10
    trained = weights(run)
    assert all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in trained.values())
    assert report["trained_parameters"] == sum(tensor.numel() for tensor in trained.values())
    loaded = glm_lightning.load(run.path)
    assert loaded.generate([{"role": "user", "content": "who are you"}], max_new_tokens=8)


def test_eight_rows_at_once_are_eight_times_one(train, name):
    whole = train("whole", *without_dropout(name), "trainer.accumulate_grad_batches=1", "trainer.max_steps=3")
    single = train("single", *without_dropout(name), "trainer.accumulate_grad_batches=8", "trainer.max_steps=3")
    assert largest_difference(weights(whole), weights(single)) < tolerance(name)


def test_packed_rows_are_the_same_rows(train, overrides, name):
    knobs = [*without_dropout(name), "trainer.max_steps=2"]
    packed = [*knobs, "data.packing=true"]
    if not get_class(node_of(name).method._target_).packs:
        with pytest.raises(UserError, match=r"data\.packing is true: .* set data\.packing=false"):
            glm_lightning.train(overrides("refused", *packed))
        return
    assert largest_difference(weights(train("plain", *knobs)), weights(train("packed", *packed))) < tolerance(name)


def test_resumed_is_uninterrupted_to_the_last_bit(train, name, tmp_path):
    dropout = [f"method.{key}=0.2" for key in node_of(name).method if key == "dropout"]
    # matrices so large that an 8-bit optimizer holds their averages in 8 bits
    dropout += ["method.rank=64"] if name == "qlora" else []
    knobs = (
        f"method={name}", *dropout, CHECKPOINTS, "trainer.precision=32-true", "trainer.max_steps=7",
        "trainer.accumulate_grad_batches=2",
    )  # fmt: skip
    whole = train("whole", *knobs)
    with dying(4):
        train("broken", *knobs)
    resumed = RunFolder(glm_lightning.train([f"resume={tmp_path / 'broken'}"]).path)
    expected, got = weights(whole), weights(resumed)
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[key], got[key]) for key in expected)
    assert resumed.read_report()["metrics"] == whole.read_report()["metrics"]


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_a_quantized_base(overrides, name, quantize, tmp_path):
    arguments = overrides(
        "quantized", f"method={name}", f"quantize={quantize}", "trainer.precision=bf16-mixed", "trainer.max_steps=6"
    )
    if not get_class(node_of(name).method._target_).on_quantized:
        with pytest.raises(UserError, match=rf"quantize is {quantize}: .* use method=qlora"):
            glm_lightning.train(arguments)
        return
    glm_lightning.train(arguments)
    run = RunFolder(tmp_path / "quantized")
    report = run.read_report()
    # validated before, in the middle and after: on a CPU bitsandbytes would repack the weights at the first of them
    assert report["metrics"]["val/loss"] < report["before"]["val/loss"]


def test_two_processes_are_one(overrides, train, tmp_path):
    """All methods, one after the other, in one pair of processes."""
    runs = {name: [*without_dropout(name), "trainer.max_steps=2"] for name in METHODS}
    for name, knobs in runs.items():
        train(f"one-{name}", *knobs, "trainer.accumulate_grad_batches=8")
    ranks = ("trainer=ddp_cpu", "trainer.accumulate_grad_batches=4")
    commands = [overrides(f"two-{name}", *knobs, *ranks) for name, knobs in runs.items()]
    file = tmp_path / "commands.json"
    file.write_text(json.dumps(commands), encoding="utf-8")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    script = ROOT / "tests" / "methods" / "ranks.py"
    done = subprocess.run(
        [*launch, str(script), str(file)], capture_output=True, text=True, env=os.environ, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    for name in METHODS:
        one, two = (weights(RunFolder(tmp_path / f"{processes}-{name}")) for processes in ("one", "two"))
        assert largest_difference(one, two) < tolerance(name), name


def test_what_a_method_cannot_be_with_is_told_before_the_network_is_loaded(overrides):
    arguments = overrides("refused", "method=qlora", "quantize=null")
    with pytest.raises(UserError, match="quantize is null: method=qlora needs nf4, fp4 or int8"):
        glm_lightning.train(arguments)


def test_configurations_name_a_learning_rate_for_both_sizes(name):
    rates = config.compose([f"method={name}"]).rates
    assert 0 < rates.large < 1
    assert 0 < rates.tiny <= 1


LEARNED = {
    "full": 0.2, "freeze": 0.5, "lora": 0.5, "qlora": 0.5, "adalora": 0.4, "ia3": 3.0, "prompt_tuning": 4.5,
    "ptuning_v2": 2.5,
}  # fmt: skip
"""Validation loss of the demo, 13.4 before training, that each method's own defaults get below."""


@pytest.mark.slow
def test_learns_the_demo_with_its_own_defaults(name, tmp_path):
    run = glm_lightning.train([f"method={name}", "data.test=null", "logger=none", f"run_dir={tmp_path / 'run'}"])
    assert run.metrics["val/loss"] < LEARNED[name]
