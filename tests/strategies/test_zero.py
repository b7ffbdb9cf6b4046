"""Two processes under DeepSpeed's engine train as one process does, and leave checkpoints that do not show it."""

import shutil

import pytest
import torch
from parts_runs import assert_equal, assert_same_training, counts, optimizer
from safetensors.torch import load_file, save_file
from tiny_runs import largest_difference, weights
from tokenizers import Tokenizer

import glm_lightning
from glm_lightning.training import placing
from glm_lightning.types import UserError

pytest.importorskip("deepspeed")

FLOAT32 = "trainer.precision=32-true"
ZERO3 = (
    "trainer=deepspeed",
    "trainer.accelerator=cpu",
    "trainer.devices=2",
    "trainer.accumulate_grad_batches=2",
    FLOAT32,
)
ZERO2 = ("trainer=deepspeed_zero2", *ZERO3[1:])
ONE = ("trainer.accumulate_grad_batches=4", FLOAT32)
FULL = (
    "method=full",
    "trainer.max_steps=4",
    "scheduler=constant",
    "optimizer.lr=1e-3",
    "trainer.gradient_clip_val=0.1",
)
CLOSE = {"within": 1e-5, "rel": 1e-4}
"""The engine computes in float32. The numbers that are compared are below 1, the steps 1e-3."""


def test_parts_on_each_rank_are_the_whole_on_one(train, in_two_processes, tmp_path):
    """Full with recomputed activations, LoRA with packed rows and answers, a run in two parts."""
    lora = ("data.packing=true", "data.test=5", "evaluation.max_new_tokens=4", "trainer.max_steps=3")
    full = (*FULL, "model.gradient_checkpointing=true")
    runs = in_two_processes(
        {
            "lora": [*lora, *ZERO3],
            "full": [*full, *ZERO3],
            "parts": [*full, *ZERO3, "trainer.max_steps=2"],
            "half": [*full, *ZERO2, "trainer.max_steps=2"],
            "more": [f"resume={tmp_path / 'parts'}", "trainer.max_steps=4"],
        }
    )
    one_lora, one_full = train("one_lora", *lora, *ONE), train("one_full", *full, *ONE)
    assert_same_training(one_lora, runs["lora"], **CLOSE)
    assert_same_training(one_full, runs["full"], **CLOSE)
    assert_equal(weights(runs["full"]), weights(runs["parts"]))
    assert_equal(optimizer(runs["full"]), optimizer(runs["parts"]))

    for name in ("lora", "full"):
        halves = [counts(runs[name], rank) for rank in (0, 1)]
        assert halves[0]["whole"] <= sum(half["own"] for half in halves) < 1.01 * halves[0]["whole"]
    for name in ("lora", "full", "half"):
        halves, trained = [counts(runs[name], rank) for rank in (0, 1)], runs[name].read_report()["trained_parameters"]
        assert trained <= sum(half["optimizer"] for half in halves) < 1.01 * trained
        assert max(half["optimizer"] for half in halves) < 0.51 * trained

    saved = glm_lightning.load(runs["full"].path / "model")
    loaded = dict(saved.model.named_parameters())
    trained = {name.removeprefix("network."): value for name, value in weights(runs["full"]).items()}
    assert max((loaded[name] - trained[name]).abs().max() for name in trained) < 1e-6

    # half of the run in two processes under ZeRO-2, the rest of it in this one
    knobs = ("trainer.max_steps=4", "trainer.strategy=auto", "trainer.devices=1", *ONE)
    glm_lightning.train([f"resume={runs['half'].path}", *knobs])
    assert_same_training(one_full, runs["half"], **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategies", "knobs"),
    [
        ((ZERO2,), (*FULL, "model.gradient_checkpointing=true")),
        ((ZERO3, ZERO2), ("method=freeze", "method.num_layers=1")),
        ((ZERO3, ZERO2), ("method=ia3",)),
        ((ZERO3, ZERO2), ("method=ptuning_v2", "method.dropout=0")),
        ((ZERO3, ZERO2), ("method=ptuning_v2", "method.dropout=0", "method.projection=true", "method.init=random")),
        ((ZERO3, ZERO2), ("method=prompt_tuning",)),
        ((ZERO3, ZERO2), ("method.dora=true", "model.gradient_checkpointing=true")),
        ((ZERO3, ZERO2), ("method.extra_modules=[lm_head]", "method.lr_ratio=4")),
        ((ZERO2,), ("method=qlora", "optimizer=adamw")),
    ],
)
def test_other_methods(train, in_two_processes, strategies, knobs):
    knobs = (*knobs, "trainer.max_steps=3", "optimizer.lr=1e-3")
    runs = in_two_processes({str(number): [*knobs, *strategy] for number, strategy in enumerate(strategies)})
    one = train("one", *knobs, *ONE)
    for run in runs.values():
        assert_same_training(one, run, **CLOSE)


@pytest.mark.slow
def test_a_step_that_is_left_out_leaves_the_others_alone(train, in_two_processes, tiny_glm, rows, tmp_path):
    """A token of one row has no embedding; the search for it must not add to the engine's gradients."""
    base = shutil.copytree(tiny_glm, tmp_path / "base")
    weights_of_base = load_file(base / "model.safetensors")
    first, *_ = Tokenizer.from_file(str(base / "tokenizer.json")).encode("ÿ", add_special_tokens=False).ids
    weights_of_base["model.embed_tokens.weight"][first] = torch.nan
    save_file(weights_of_base, base / "model.safetensors", metadata={"format": "pt"})
    lines = rows.read_text(encoding="utf-8").splitlines()
    lines[12] = lines[12].replace('"content": "', '"content": "ÿ ', 1)
    data = tmp_path / "poisoned.jsonl"
    data.write_text("\n".join(lines), encoding="utf-8")
    of_data = (f"model.path={base}", f"data.train={data}", "data.val=null")
    knobs = (*of_data, "on_non_finite=skip", "scheduler=constant", "optimizer.lr=1e-3")
    runs = in_two_processes({"three": [*knobs, *ZERO3], "two": [*knobs, *ZERO2]})
    with pytest.warns(UserWarning, match="step [3-5]: the gradient norm is nan: skipped"):
        one = train("one", *knobs, *ONE)
    for run in (one, *runs.values()):
        assert "1 step(s) were skipped" in " ".join(run.read_report()["notices"])
    for run in runs.values():
        assert largest_difference(weights(one), weights(run)) < CLOSE["within"]
        assert largest_difference(optimizer(one), optimizer(run)) < CLOSE["within"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_16_bits(train, in_two_processes, method):
    knobs = (f"method={method}", "trainer.precision=bf16-mixed", "trainer.max_steps=3", "optimizer.lr=1e-3")
    runs = in_two_processes({"three": [*ZERO3, *knobs], "two": [*ZERO2, *knobs]})
    one = train("one", *ONE, *knobs)
    for run in runs.values():
        assert_same_training(one, run, within=5e-3, rel=5e-3)
        assert all(tensor.dtype == torch.float32 for tensor in weights(run).values())


@pytest.mark.parametrize(
    ("knobs", "part"),
    [
        (["method=adalora"], "AdaLoRA cannot work with it; ranks cannot be allocated over gradients in parts"),
        (["method=full", "method.l2_to_start=0.1"], "method.l2_to_start is 0.1: keeps whole weights on every rank"),
        (["method=qlora"], "QLoRA cannot work with it; quantised layers are not sharded; use trainer=ddp"),
        (["optimizer=adamw_8bit"], "optimizer takes no parts; use optimizer=adamw"),
        (["trainer.precision=16-mixed"], "use trainer.precision=bf16-mixed"),
        (["trainer.precision=64-true"], "its engine keeps float32; use trainer.precision=32-true"),
        (["trainer.devices=1"], "there is one device to lay parts on; use trainer=default"),
        (["model.compile=true"], "do not go with model.compile=true"),
    ],
)
def test_what_cannot_go_with_it_is_refused_before_anything_is_loaded(overrides, knobs, part):
    with pytest.raises(UserError) as caught:
        glm_lightning.train(overrides("refused", *ZERO3, "data.train=/nowhere.jsonl", *knobs))
    assert any(part in problem for problem in caught.value.problems), caught.value.problems
    assert len(caught.value.problems) <= 3  # the missing file, and what a CPU cannot


def test_the_package_may_be_missing(overrides, monkeypatch):
    monkeypatch.setattr(placing, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs the package deepspeed; pip install 'glm-lightning\[deepspeed\]'"):
        glm_lightning.train(overrides("refused", *ZERO2))
