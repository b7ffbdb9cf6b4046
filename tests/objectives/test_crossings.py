"""Every objective of conf/objective/ with every method of conf/method/: three steps, what is trained, and resuming."""

from __future__ import annotations

import json
import math

import pytest
import torch
from tiny_runs import ROOT, dying, largest_difference, weights

import glm_lightning
from glm_lightning.methods.base import Method
from glm_lightning.runs import RunFolder

# peft 0.21 says so of every AdaLoRA adapter that it loads, and uses the keys all the same
pytestmark = pytest.mark.filterwarnings("ignore:The following rank_pattern keys:RuntimeWarning")

OBJECTIVES = sorted(file.stem for file in (ROOT / "conf" / "objective").glob("*.yaml"))
METHODS = sorted(file.stem for file in (ROOT / "conf" / "method").glob("*.yaml"))
QUICK = {("pretrain", "ptuning_v2"), ("preference", "ia3"), ("distill", "freeze")}
CASES = [
    pytest.param(objective, method, marks=() if (objective, method) in QUICK else pytest.mark.slow)
    for objective in OBJECTIVES
    for method in METHODS
]


@pytest.fixture
def run(tmp_path):
    """Three steps of a run of the embedded model, on the data that the objective brings."""

    def learn(name, *words):
        small = ["trainer.max_steps=3", "trainer.log_every_n_steps=1", "data.batch_size=4", "data.test=null"]
        common = ["logger=none", "callbacks.checkpoints.every_n_steps=1", f"data.cache_dir={tmp_path / 'cache'}"]
        glm_lightning.train([*words, *small, *common, f"run_dir={tmp_path / name}"])
        return RunFolder(tmp_path / name)

    return learn


@pytest.fixture
def begun(monkeypatch):
    """The methods that were trained, each with a copy of all its parameters from before."""
    found = []
    original = Method.on_fit_start

    def copying(self):
        original(self)
        found.append((self, {name: p.detach().clone() for name, p in self.named_parameters()}))

    monkeypatch.setattr(Method, "on_fit_start", copying)
    return found


@pytest.mark.parametrize(("objective", "method"), CASES)
def test_three_steps_change_what_the_method_trains_and_resume(run, begun, tmp_path, objective, method):
    words = [f"objective={objective}", f"method={method}"]
    whole = run("whole", *words)
    (learner, before), *_ = begun
    changed = {name for name, p in learner.named_parameters() if not torch.equal(p.detach(), before[name])}
    assert changed
    assert changed <= learner.trained().keys()
    rows = [json.loads(line) for line in (whole.path / "metrics.jsonl").read_text().splitlines()]
    losses = [row[name] for row in rows for name in ("train/loss", "val/loss") if name in row]
    assert len(losses) >= 4
    assert all(map(math.isfinite, losses))
    # a checkpoint holds what is trained and nothing else
    trained = weights(whole)
    assert trained.keys() == learner.trained().keys()
    assert all(torch.isfinite(tensor).all() for tensor in trained.values())
    # killed behind the second step and resumed it ends the same
    with dying(2):
        run("died", *words)
    glm_lightning.train([f"resume={tmp_path / 'died'}"])
    assert largest_difference(weights(RunFolder(tmp_path / "died")), trained) == 0
