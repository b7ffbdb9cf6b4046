"""A loss or a gradient that is not finite: the step, the samples and the first layer are named."""

import json
import os
import subprocess
import sys

import pytest
import torch
from spoilt import SAMPLE, spoil
from tiny_runs import ROOT, weights
from transformers.models.glm.modeling_glm import GlmMLP

from glm_lightning.methods.base import SKIPPED_IN_A_ROW, Method
from glm_lightning.objectives.sft import SFT
from glm_lightning.runs import RunFolder
from glm_lightning.types import UserError

KNOBS = ("method=full", "data.val=null", "trainer.max_steps=-1", "trainer.max_epochs=1", "data.max_tokens=4096")
MLP = "model.layers.1.mlp"


@pytest.fixture
def spoil_one(monkeypatch):
    monkeypatch.setattr(SFT, "loss", SFT.loss)
    monkeypatch.setattr(GlmMLP, "forward", GlmMLP.forward)
    return spoil


WHERE = {
    "forward": f"the output of {MLP} (GlmMLP) is not finite",
    "backward": "the gradient that model.layers.1.post_attention_layernorm (GlmRMSNorm) is given by what follows it",
    "loss": "the loss behind the last layer is not finite",
}


@pytest.mark.parametrize(("kind", "accumulate"), [("forward", 1), ("forward", 8), ("backward", 8), ("loss", 8)])
def test_the_run_stops_and_names_all_of_it(train, rows, spoil_one, kind, accumulate):
    spoil_one(kind)
    with pytest.raises(UserError) as caught:
        train("stopped", *KNOBS, f"trainer.accumulate_grad_batches={accumulate}")
    first, *_, last = caught.value.problems
    assert "the gradient norm is nan: micro-batch" in first
    assert f"of {accumulate}: " in first
    assert WHERE[kind] in first
    assert f"{rows}:{SAMPLE + 1}" in first
    assert "on_non_finite=skip" in last
    if kind == "forward":
        assert first.endswith(f"samples {rows}:{SAMPLE + 1}")  # it alone


def test_a_skipped_step_changes_nothing_and_is_told(train, spoil_one, monkeypatch):
    spoil_one("forward")
    steps = []
    clipping, finished = Method.configure_gradient_clipping, Method.on_train_batch_end

    def values(method):
        return {name: p.detach().clone() for name, p in method.trained().items()}

    def before(self, *args, **kwargs):
        steps.append([values(self)])
        clipping(self, *args, **kwargs)

    def after(self, *args):
        if len(steps[-1]) == 1:
            steps[-1] += [values(self), self.skipped_step]
        finished(self, *args)

    monkeypatch.setattr(Method, "configure_gradient_clipping", before)
    monkeypatch.setattr(Method, "on_train_batch_end", after)
    with pytest.warns(UserWarning, match="is nan: skipped; micro-batch"):
        run = train("skipping", *KNOBS, "on_non_finite=skip", "trainer.accumulate_grad_batches=1")
    equal = [all(torch.equal(old[name], new[name]) for name in old) for old, new, _ in steps]
    assert [skipped for *_, skipped in steps] == equal
    assert equal.count(True) == 1
    assert all(tensor.isfinite().all() for tensor in weights(run).values())
    assert "1 step(s) were skipped: their gradients were not finite" in run.read_report()["notices"]


def test_a_network_that_is_broken_is_not_skipped_for_ever(train, monkeypatch):
    configure = Method.configure_model

    def broken(self):
        configure(self)
        with torch.no_grad():
            next(p for name, p in self.named_parameters() if "layers.1.mlp.down_proj" in name)[0, 0] = torch.nan

    monkeypatch.setattr(Method, "configure_model", broken)
    with pytest.warns(UserWarning, match="skipped"), pytest.raises(UserError) as caught:
        train("broken", *KNOBS, "on_non_finite=skip", "trainer.max_epochs=9", "data.batch_size=8")
    assert f"step {SKIPPED_IN_A_ROW + 1}: " in caught.value.problems[0]
    assert f"{MLP}.down_proj (Linear) is not finite, whose own weight is not finite" in caught.value.problems[0]


def test_another_word_is_refused(train):
    with pytest.raises(UserError, match="on_non_finite is 'ignore': must be one of stop, skip"):
        train("refused", "on_non_finite=ignore")


@pytest.mark.parametrize("action", ["stop", pytest.param("skip", marks=pytest.mark.slow)])
def test_two_ranks_do_the_same(overrides, tmp_path, rows, action):
    """Only one of them has the sample."""
    knobs = (*KNOBS, "trainer=ddp_cpu", "trainer.accumulate_grad_batches=4", f"on_non_finite={action}")
    arguments = overrides("ranks", *knobs)
    script = [sys.executable, str(ROOT / "tests/methods/spoilt.py"), "forward", json.dumps(arguments)]
    done = subprocess.run(script, capture_output=True, text=True, env=os.environ, timeout=120, check=False)
    if action == "stop":
        assert done.returncode == 2, done.stderr[-3000:]
    else:
        assert done.returncode == 0, done.stderr[-3000:]
        assert RunFolder(tmp_path / "ranks").read_report()["steps"] == 6
    assert f"{MLP} (GlmMLP) is not finite; samples {rows}:{SAMPLE + 1}" in done.stderr
    assert any(f"rank {rank}, micro-batch" in done.stderr for rank in (0, 1))
