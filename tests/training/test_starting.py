"""Going on from a run: the same adapter, something new on what was learned, old rows again, and what is forgotten."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import ROOT

import glm_lightning as gl
from glm_lightning.cli import main
from glm_lightning.runs import RunFolder
from glm_lightning.training import forgetting
from glm_lightning.types import UserError

ASKED = [{"role": "user", "content": "the quick brown fox"}]


@pytest.fixture
def go_on(overrides, train, tmp_path):
    """A run, and another that goes on from it."""

    def run(name: str, *more: str, of: str = "first") -> RunFolder:
        if not (tmp_path / of).exists():
            train(of, "method.rank=4", "trainer.max_steps=3")
        own = [each for each in overrides(name) if not each.startswith("model")]
        gl.train([*own, "trainer.max_steps=2", f"init_from={tmp_path / of}", *more])
        return RunFolder(tmp_path / name)

    return run


@pytest.fixture
def other_rows(tmp_path) -> Path:
    path = tmp_path / "other.jsonl"
    lines = [json.dumps({"prompt": f"lamp {n}", "response": f"a lamp of kind {n % 5}"}) for n in range(24)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def config_of(run: RunFolder):
    from glm_lightning import config

    return config.load(run.config)


def logits(glm):
    with torch.no_grad():
        return glm.model(torch.tensor([glm.prompt(ASKED)])).logits


def trained(run: RunFolder):
    return load_file(run.last / "trained.safetensors")


def test_ranks_that_are_started_may_be_told_what_was_added_for_the_first(train, overrides, tmp_path):
    """Lightning gives them the composed overrides, model and method of the run before among them."""
    from glm_lightning import config

    train("first", "trainer.max_steps=1")
    model = next(each for each in overrides("") if each.startswith("model.path="))
    first = config.compose([f"init_from={tmp_path / 'first'}"])
    assert first == config.compose([f"init_from={tmp_path / 'first'}", "model=local", model, "method=lora"])
    with pytest.raises(UserError, match="init_from brings its own model; leave model out"):
        config.compose([f"init_from={tmp_path / 'first'}", "model=demo"])


def test_the_same_adapter_goes_on_as_the_run_itself_would(train, go_on, tmp_path):
    """Where each step sees all rows and remembers no gradient, two steps and one more are three."""
    knobs = ("data.batch_size=48", "data.val=null", "scheduler=constant", "scheduler.warmup=0", "trainer.max_epochs=3",
             "optimizer.betas=[0.0,0.0]")  # fmt: skip
    first = train("first", *knobs, "trainer.max_steps=2")
    second = go_on("second", *knobs, "trainer.max_steps=1")
    longer = train("longer", *knobs, "trainer.max_steps=3")
    assert config_of(second).init_as == "adapter"
    start, chain, whole = map(trained, (first, second, longer))
    assert max((start[name] - whole[name]).abs().max() for name in whole) > 1e-4
    assert max((chain[name] - whole[name]).abs().max() for name in whole) < 1e-10


def test_it_brings_its_model_its_method_and_its_knobs(go_on, other_rows, tmp_path):
    run = go_on("second", f"data.train={other_rows}", "data.format=auto")
    assert config_of(run).method.rank == 4
    (ancestor,) = json.loads(run.ancestors.read_text(encoding="utf-8"))
    assert (ancestor["run"], ancestor["steps"], ancestor["method"]) == (str(tmp_path / "first"), 3, "LoRA")
    assert ancestor["data"]["train"]["fingerprint"]
    card = (run.path / "adapter" / "README.md").read_text(encoding="utf-8")
    assert "trained before in" in card
    third = go_on("third", of="second")
    assert len(json.loads(third.ancestors.read_text(encoding="utf-8"))) == 2
    # what is forgotten of both is measured, each on its own validation rows
    assert set(third.read_report()["forgetting"]) == {"first", "second"}


def test_something_new_on_a_merged_base_is_the_chain_of_both(go_on, tmp_path):
    run = go_on("second", "init_as=base", "method.rank=2")
    assert config_of(run).method.rank == 2
    merged = gl.load(run.path / "base")
    assert (logits(merged) - logits(gl.load(tmp_path / "first"))).abs().max() < 1e-4
    about = json.loads((run.path / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    second = load_file(run.path / "adapter" / "adapter_model.safetensors")
    weights = dict(merged.model.named_parameters())
    with torch.no_grad():
        for name in {name.rpartition(".lora_")[0] for name in second}:
            weights[f"{name.removeprefix('base_model.model.')}.weight"] += (
                about["lora_alpha"] / about["r"] * second[f"{name}.lora_B.weight"] @ second[f"{name}.lora_A.weight"]
            )
    assert (logits(merged) - logits(gl.load(run.path))).abs().max() < 1e-4


def test_another_method_begins_on_the_base(go_on):
    run = go_on("second", "method=ia3")
    assert config_of(run).init_as == "base"
    assert (run.path / "base" / "model.safetensors").is_file()


def test_a_run_of_all_weights_is_gone_on_from_its_model(train, go_on, tmp_path):
    train("first", "method=full", "trainer.max_steps=2")
    run = go_on("second")
    assert config_of(run).model.path == str(tmp_path / "first" / "model")
    assert config_of(run).method._target_.endswith("Full")


@pytest.mark.parametrize("method", ["ptuning_v2", "adalora", "qlora"])
def test_other_adapters_go_on(train, go_on, method):
    first = train("first", f"method={method}", "trainer.precision=32-true", "data.batch_size=4", "trainer.max_steps=6")
    run = go_on("second", "trainer.precision=32-true", "data.batch_size=4", "trainer.max_steps=6")
    after, before = first.read_report()["metrics"]["val/loss"], run.read_report()["before"]["val/loss"]
    assert before == pytest.approx(after, rel=1e-5)


def test_what_is_forgotten_is_said(go_on, other_rows, tmp_path, capsys):
    run = go_on("second", f"data.train={other_rows}", "data.format=auto", f"general={other_rows}")
    told = run.read_report()["forgetting"]
    assert set(told) == {"general", "first"}
    first = RunFolder(tmp_path / "first").read_report()
    assert told["first"]["before"] == pytest.approx(first["metrics"]["val/loss"], rel=1e-9)
    words = forgetting.verdict(told["first"]["before"], told["first"]["after"])
    assert f"first: {words}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (0.9, "better than before"),
        (1, "kept"),
        (1.03, "a little forgotten"),
        (1.1, "partly forgotten"),
        (2, "forgotten"),
    ],
)
def test_verdicts(after, words):
    assert forgetting.verdict(1, after) == words


def test_rows_that_are_learned_again_neither_validate_nor_tell_what_is_forgotten(go_on, other_rows):
    run = go_on("second", f"data.train={other_rows}", "data.format=auto", "data.val=6", "replay=0.73")
    data = json.loads(run.data.read_text(encoding="utf-8"))
    assert data["val"]["samples"] == 6
    assert data["train"]["sources"][1]["rows"] == 49
    # all rows of the first run are learned again, its validation rows among them
    assert run.read_report()["forgetting"] == {}


def test_old_rows_are_learned_again(go_on, other_rows):
    knobs = (f"data.train={other_rows}", "data.format=auto", "data.val=null", "replay=0.25")
    run = go_on("second", *knobs)
    new, old = json.loads(run.data.read_text(encoding="utf-8"))["train"]["sources"]
    assert (new["rows"], old["rows"]) == (24, 8)
    assert old["source"].endswith("rows.jsonl")
    before = run.data.read_text(encoding="utf-8")
    gl.train([f"resume={run.path}", "trainer.max_steps=3"])
    assert run.data.read_text(encoding="utf-8") == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["init_from=/nowhere"], "neither a run nor an adapter nor a model folder"),
        (["replay=0.5"], "needs init_from=RUN"),
        (["init_as=both", "init_from=/nowhere"], "must be one of auto, adapter, base"),
    ],
)
def test_mistakes_are_told(overrides, changes, message):
    with pytest.raises(UserError, match=message):
        gl.train([*overrides("x"), *changes])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["init_as=adapter", "method=ia3"], "whose adapter alone can go on"),
        (["method.alpha=32"], "an adapter that goes on keeps it"),
        (["model=demo"], "brings its own model"),
        (["replay=1.5"], r"must be in \[0, 1\)"),
        (["objective.kl_to_base=-1"], "must be 0 or more"),
        (["objective.kl_to_base=1", "method=full"], "trains weights of the base itself"),
    ],
)
def test_what_does_not_go_together_is_refused(go_on, changes, message):
    with pytest.raises(UserError, match=message):
        go_on("second", *changes)


def test_without_new_rows_it_would_be_the_same_run(go_on, tmp_path):
    go_on("second")
    with pytest.raises(UserError, match="say what is learned now"):
        gl.train([f"init_from={tmp_path / 'second'}", f"run_dir={tmp_path / 'x'}"])


def test_runs_are_compared(go_on, other_rows, tmp_path, capsys):
    run = go_on("second", f"data.train={other_rows}", "data.format=auto")
    capsys.readouterr()
    folders = [str(tmp_path / "first"), str(run.path)]
    assert main(["compare", *folders, "--html", str(tmp_path / "page.html"), "--json"]) == 0
    _, second = json.loads(capsys.readouterr().out)
    report = run.read_report()
    assert second["gained"] == pytest.approx(report["before"]["val/loss"] - report["metrics"]["val/loss"])
    kept = report["forgetting"]["first"]
    assert second["forgotten"] == pytest.approx(kept["after"] - kept["before"])
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("<circle") == 1, "the first has nothing to forget"
    with pytest.raises(SystemExit):
        main(["compare", str(tmp_path)])
    assert "no finished run lies there" in capsys.readouterr().err


@pytest.mark.slow
def test_the_demo_forgets_less_with_replay_or_near_its_base(tmp_path):
    """The brand's voice, then a new line: what README shows."""
    knobs = ("logger=none", "evaluation.rows=4", "trainer.max_epochs=2")
    gl.train([*knobs, "trainer.max_epochs=4", f"run_dir={tmp_path / 'brand'}"])
    ways = {"plain": [], "replay": ["replay=0.3"], "near": ["init_as=base", "objective.kl_to_base=1"]}
    rise = {}
    for name, way in ways.items():
        run = gl.train(
            [*knobs, f"init_from={tmp_path / 'brand'}", "data=demo_lamps", f"run_dir={tmp_path / name}", *way]
        )
        kept = RunFolder(run.path).read_report()["forgetting"]["brand"]
        rise[name] = kept["after"] - kept["before"]
    assert rise["replay"] < 0.25 * rise["plain"]
    assert rise["near"] < 0.5 * rise["plain"]
    assert (ROOT / "conf" / "data" / "demo_lamps.yaml").is_file()
