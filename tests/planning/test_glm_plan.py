"""`glm plan`: what every method takes, what fits, and a command that says so."""

from __future__ import annotations

import json
import shlex

import numpy as np
import pytest
import torch

from glm_lightning import config as configuration
from glm_lightning.cli import main
from glm_lightning.data.plan import padded_lengths
from glm_lightning.estimate import devices
from glm_lightning.estimate.devices import GIB, Device
from glm_lightning.estimate.fitting import fit, on_devices
from glm_lightning.estimate.tracing import Shape
from glm_lightning.models import Source
from glm_lightning.models.releases import CONFIGS
from glm_lightning.objectives.sft import SFT
from glm_lightning.planning import table
from glm_lightning.planning.row import Question, row
from glm_lightning.training.expected import Work, memory_of, network_of

NINE_B = {
    "model_type": "glm", "hidden_size": 4096, "intermediate_size": 13696, "num_hidden_layers": 40, "head_dim": 128,
    "num_attention_heads": 32, "num_key_value_heads": 2, "vocab_size": 151552, "attention_bias": True,
    "torch_dtype": "bfloat16", "pad_token_id": 0, "tie_word_embeddings": False,
}  # fmt: skip


@pytest.fixture
def nine_b(tmp_path):
    """GLM-4-9B's sizes; no tokenizer and no weights."""
    (tmp_path / "config.json").write_text(json.dumps(NINE_B), encoding="utf-8")
    return f"model.path={tmp_path}"


def planned(capsys, *arguments):
    """Choices and refusals by method."""
    assert main(["plan", *arguments, "--json"]) == 0
    methods = json.loads(capsys.readouterr().out)["methods"]
    return {each["method"]: each.get("choices", each.get("refused")) for each in methods}


def test_a_24_gb_card_holds_a_9b_base_in_16_bits_with_checkpointing_only(capsys, nine_b):
    found = planned(capsys, "model=local", nine_b, "--memory", "24GB", "--methods", "full,lora,qlora")
    fits = {name: [choice["fits"] for choice in choices] for name, choices in found.items()}
    assert fits == {"full": [False, False], "lora": [False, True], "qlora": [False, True]}
    (lora, _), (full, _) = found["lora"], found["full"]
    # two bytes a weight, and an adapter in float32; full holds weights, gradients and two averages in float32
    assert lora["bytes"]["weights"] == pytest.approx(2 * 9_399_951_360 + 4 * lora["trained"], rel=1e-6)
    assert full["bytes"]["gradients"] == 4 * 9_399_951_360
    assert full["bytes"]["optimizer"] == pytest.approx(8 * 9_399_951_360, rel=1e-6)


ONE_OF_EACH = ("chatglm_6b", "chatglm3_6b", "glm_4_9b_chat", "glm_4_9b_0414", "glm_4_5_air", "glm_4_7_flash")
"""A release of each network."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in ONE_OF_EACH else pytest.mark.slow) for name in sorted(CONFIGS)]
)
def test_every_release_can_be_planned_for_without_a_hub(capsys, name):
    (found,) = planned(capsys, f"model={name}", "--device", "H100 SXM", "--methods", "lora").values()
    assert all(choice["peak_gib"] > 2 for choice in found)


def test_what_is_recommended_can_be_run(capsys, nine_b):
    assert (
        main(["plan", "model=local", nine_b, "method.rank=16", "--device", "rtx 4090", "--methods", "lora,qlora"]) == 0
    )
    said = capsys.readouterr().out
    assert "RTX 4090" in said
    command = said.splitlines()[-1].split("train.py ")[1]
    made = configuration.compose(shlex.split(command))
    assert made.method.rank == 16
    assert made.model.gradient_checkpointing is True


def test_where_nothing_fits_it_says_what_to_do(capsys, nine_b):
    assert main(["plan", "model=local", nine_b, "--memory", "4GB", "--methods", "lora,full"]) == 0
    assert "Nothing fits" in capsys.readouterr().out


def test_what_cannot_work_is_told_with_its_reason(capsys, nine_b):
    found = planned(capsys, "model=local", nine_b, "trainer=fsdp", "trainer.devices=8", "--memory", "40", "--methods",
                    "lora,qlora")  # fmt: skip
    assert "not sharded" in found["qlora"]
    assert len(found["lora"]) == 2


def test_rows_of_its_own_data_count(capsys):
    (demo, _) = planned(capsys, "--methods", "lora", "--memory", "8GB")["lora"]
    (short, _) = planned(capsys, "data.max_tokens=256", "--methods", "lora", "--memory", "8GB")["lora"]
    assert short["bytes"]["activations"] < demo["bytes"]["activations"] / 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "RTX 4091"], "RTX 4090"),
        (["--memory", "much"], "--memory is 'much'"),
        (["methd=lora"], "methd"),
        (["--methods", "loora"], "lora"),
        (["model=local", "model.path=/nowhere"], "/nowhere"),
    ],
)
def test_mistakes_are_told(capsys, arguments, message):
    with pytest.raises(SystemExit) as ended:
        main(["plan", *arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def question(work, device, *, num_devices=1):
    return Question(work=work, precision="32-true", device=device, num_devices=num_devices, rate=1e12)


def asked(*overrides, device, num_devices=1):
    config = configuration.compose(["data=auto", "data.max_length=64", "data.max_tokens=512", *overrides])
    work = Work.full(config.data)
    return row("lora", config, Source(path="demo"), SFT(), question(work, device, num_devices=num_devices))


@pytest.mark.parametrize("accumulates", [False, True])
def test_as_many_rows_fit_as_it_says_and_no_more(accumulates):
    config = configuration.compose()
    network = network_of(config, Source(path="demo"), precision="32-true", kernels="cpu")
    taken = lambda rows: network.memory(Shape(rows, 64, rows * 32), accumulates=accumulates).peak  # noqa: E731
    # beyond the first chunk of the loss, and not at the edge of it
    capacity = taken(9) + 1
    found = fit(network, length=64, supervised=0.5, capacity=capacity, accumulates=accumulates)
    assert taken(found.rows) <= capacity
    assert found.rows in (8, 9)


def test_a_device_without_room_for_a_row_holds_none():
    device = Device("a card", 0.51, None, "made up")
    made = asked(device=device)
    assert [choice.works for choice in made.choices] == [False, False]
    assert made.best is None
    assert table.recommended([made]) is None


def test_checkpointing_is_chosen_where_it_must_be():
    plain, checkpointed = (choice.expected.peak for choice in asked(device=devices.of_memory("24")).choices)
    between = Device("a card", (plain + checkpointed) / 2 / GIB, None, "made up")
    best = asked(device=between).best
    assert best is not None
    assert best.checkpointing


def test_shards_and_copies_of_gradients():
    memory = memory_of(
        configuration.compose(), Source(path="demo"), SFT(), Work(Shape(2, 16, 8), False, 32), precision="32-true",
        kernels="cpu",
    )  # fmt: skip
    assert on_devices(memory, strategy="ddp", devices=2) == memory.peak + memory.gradients
    *layers, rest = memory.units
    assert sum(memory.units) == 4 * (Source(path="demo").skeleton.num_parameters() + memory.trained)
    parts = memory.peak - memory.held - (-memory.held // 4)
    assert on_devices(memory, strategy="fsdp", devices=4) == parts + 2 * layers[0] + rest
    assert on_devices(memory, strategy="fsdp_zero2", devices=4) == parts + sum(memory.units)
    assert on_devices(memory, strategy="auto", devices=1) == memory.peak


def test_sharded_weights_are_not_copied_by_autocast():
    config, source, work = configuration.compose(["method=full"]), Source(path="demo"), Work(Shape(2, 16, 8), False, 32)
    copied = memory_of(config, source, SFT(), work, precision="bf16-mixed", kernels="cpu")
    config.trainer.strategy = "fsdp"
    sharded = memory_of(config, source, SFT(), work, precision="bf16-mixed", kernels="cpu")
    linear = [module for module in source.skeleton.modules() if isinstance(module, torch.nn.Linear)]
    numbers = sum(each.numel() for module in linear for each in module.parameters())
    moment = "output layer and loss"
    assert copied.moments[moment] - sharded.moments[moment] == 2 * numbers
    assert sum(sharded.units) == 2 * source.skeleton.num_parameters()


def test_a_teacher_takes_its_weights():
    config = configuration.compose(["objective=distill"])
    from glm_lightning.config import made

    objective = made(config.objective, "objective")
    work = Work(Shape(2, 16, 8), False, 32)
    alone = memory_of(config, Source(path="demo"), SFT(), work, precision="32-true", kernels="cpu")
    taught = memory_of(config, Source(path="demo"), objective, work, precision="32-true", kernels="cpu")
    assert taught.peak - alone.peak == taught.beside > 3_000_000


def test_padded_lengths_of_full_work_are_those_of_the_data():
    config = configuration.compose(["data=auto", "data.max_length=100", "data.max_tokens=300"]).data
    work = Work.full(config)
    assert work.longest == padded_lengths(np.array([100]), config.pad_to_multiple)[0]
    assert work.largest.positions <= max(config.max_tokens, work.longest)
    assert work.accumulates
