"""Two processes that hold half of every weight each train as one process does."""

import pytest
import torch
from parts_runs import assert_equal, assert_same_training, counts, losses, optimizer
from tiny_runs import largest_difference, weights

import glm_lightning
from glm_lightning.types import UserError

SHARDED = ("trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.accumulate_grad_batches=2")
ZERO2 = ("trainer=fsdp_zero2", *SHARDED[1:])
ONE = ("trainer.accumulate_grad_batches=4",)
FULL = ("method=full", "trainer.max_steps=4", "scheduler=constant")


def test_half_of_every_weight_on_each_rank_is_the_whole_on_one(train, in_two_processes, tmp_path):
    """Full with recomputed activations, LoRA with packed rows and answers, a run in two parts."""
    lora = ("data.packing=true", "data.test=5", "evaluation.max_new_tokens=4", "trainer.max_steps=3")
    full = (*FULL, "model.gradient_checkpointing=true", "trainer.gradient_clip_val=0.01")
    runs = in_two_processes(
        {
            "lora": [*lora, *SHARDED],
            "full": [*full, *SHARDED],
            "zero2": [*full, *ZERO2],
            "parts": [*full, *SHARDED, "trainer.max_steps=2"],
            "half": [*full, *SHARDED, "trainer.max_steps=2"],
            "more": [f"resume={tmp_path / 'parts'}", "trainer.max_steps=4"],
        }
    )
    one_lora, one_full = train("one_lora", *lora, *ONE), train("one_full", *full, *ONE)
    assert_same_training(one_lora, runs["lora"])
    assert one_lora.read_report()["metrics"].keys() >= {"test/rouge_l", "val/loss"}
    assert_same_training(one_full, runs["full"])
    assert_same_training(one_full, runs["zero2"])
    assert_equal(weights(runs["full"]), weights(runs["parts"]))
    assert_equal(optimizer(runs["full"]), optimizer(runs["parts"]))

    for name in ("lora", "full", "zero2"):
        halves = [counts(runs[name], rank) for rank in (0, 1)]
        assert sum(half["own"] for half in halves) == halves[0]["whole"]
        assert sum(half["optimizer"] for half in halves) == runs[name].read_report()["trained_parameters"]
        assert max(half["own"] for half in halves) < 0.51 * halves[0]["whole"]
    gathered = {name: counts(runs[name], 0)["gathered"] for name in ("full", "zero2")}
    assert gathered["zero2"] < 0.8 * gathered["full"], gathered

    live = glm_lightning.load(runs["full"].path)
    saved = glm_lightning.load(runs["full"].path / "model")
    assert_equal(dict(live.model.named_parameters()), dict(saved.model.named_parameters()))
    loaded = {name: value.double() for name, value in saved.model.named_parameters()}
    trained = {name.removeprefix("network."): value for name, value in weights(runs["full"]).items()}
    assert max((loaded[name] - trained[name]).abs().max() for name in trained) < 1e-6

    # half of the run in halves, the rest of it in one piece
    knobs = ("trainer.max_steps=4", "trainer.strategy=auto", "trainer.devices=1", *ONE)
    glm_lightning.train([f"resume={runs['half'].path}", *knobs])
    assert_same_training(one_full, runs["half"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "knobs",
    [
        ("method=freeze", "method.num_layers=1"),
        ("method=freeze", "method.num_layers=0", "method.embeddings=true", "method.head=true"),
        ("method=ia3",),
        ("method=ptuning_v2", "method.dropout=0"),
        ("method.dora=true", "model.gradient_checkpointing=true"),
        ("method.extra_modules=[lm_head]", "method.lr_ratio=4"),
    ],
)
def test_other_methods(train, in_two_processes, knobs):
    runs = in_two_processes({"two": [*knobs, *SHARDED, "trainer.max_steps=3"]})
    assert_same_training(train("one", *knobs, *ONE, "trainer.max_steps=3"), runs["two"])


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "tolerance"), [("32-true", 1e-5), ("bf16-mixed", 2e-2)])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_other_precisions(train, in_two_processes, method, precision, tolerance):
    knobs = (f"method={method}", f"trainer.precision={precision}", "trainer.max_steps=3", "optimizer.lr=1e-3")
    two = in_two_processes({"two": [*knobs, *SHARDED]})["two"]
    one = train("one", *knobs, *ONE)
    assert largest_difference(weights(one), weights(two)) < tolerance
    assert all(tensor.dtype == torch.float32 for tensor in weights(two).values())
    assert [value for _, value in losses(two)] == pytest.approx([value for _, value in losses(one)], rel=tolerance)


@pytest.mark.parametrize(
    ("knobs", "part"),
    [
        (["method=adalora"], "AdaLoRA cannot work with it; ranks cannot be allocated"),
        (["method=qlora"], "QLoRA cannot work with it; quantised layers are not sharded; use trainer=ddp"),
        (["quantize=int8"], "LoRA cannot work with it; quantised layers are not sharded"),
        (["method=prompt_tuning"], "PromptTuning cannot work with it; PEFT keeps soft tokens outside"),
        (["method.init=olora"], "method.init is 'olora': takes whole weights apart; use init=default"),
        (["optimizer=adamw_8bit"], "optimizer takes no parts; use optimizer=adamw"),
        (["trainer.precision=16-mixed"], "use trainer.precision=bf16-mixed"),
        (["trainer.devices=1"], "there is one device to lay parts on; use trainer=default"),
    ],
)
def test_what_cannot_be_sharded_is_refused_before_anything_is_loaded(overrides, knobs, part):
    with pytest.raises(UserError) as caught:
        glm_lightning.train(overrides("refused", *SHARDED, "data.train=/nowhere.jsonl", *knobs))
    assert any(part in problem for problem in caught.value.problems), caught.value.problems
    assert len(caught.value.problems) <= 3  # the missing file, and what a CPU cannot
