"""Which method works with which strategy: the README's table is what the code refuses."""

import re

import pytest
from hydra.utils import get_class
from tiny_runs import ROOT

import glm_lightning
from glm_lightning import config
from glm_lightning.training import placing
from glm_lightning.types import UserError

METHODS = sorted(file.stem for file in (ROOT / "conf" / "method").glob("*.yaml"))


def table():
    return list(
        placing.table({name: get_class(config.compose([f"method={name}"]).method._target_) for name in METHODS})
    )


def test_every_method_has_a_row_and_works_somewhere():
    rows = table()
    assert [row[0] for row in rows] == METHODS
    assert all(row[1:3] == ("yes", "yes") for row in rows)
    assert {row[0] for row in rows if row[3] == "no"} == {"adalora", "prompt_tuning", "qlora"}
    assert all(row[4] == row[3] for row in rows)
    assert {row[0] for row in rows if row[5] == "no"} == {"adalora", "qlora"}
    assert {row[0] for row in rows if row[6] == "no"} == {"adalora"}
    assert {row[0] for row in rows if row[7] == "no"} == {"full", "freeze"}


@pytest.mark.parametrize("file", ["README.md", "README_zh.md"])
def test_the_readme_says_so(file):
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    start = next((number for number, line in enumerate(lines) if line.count("|") == 9 and "fsdp" in line), None)
    if start is None:
        pytest.skip("the README has no such table yet")
    said = [tuple(re.findall(r"`?([\w]+)`?", line)) for line in lines[start + 2 : start + 2 + len(METHODS)]]
    assert [(row[0], *("yes" if cell in ("yes", "是") else "no" for cell in row[1:])) for row in said] == table()


@pytest.mark.parametrize("row", table(), ids=lambda row: row[0])
def test_what_the_table_refuses_is_refused_at_the_start(overrides, row, monkeypatch):
    """Before data are read and a network is loaded; whether DeepSpeed is installed is another question."""
    monkeypatch.setattr(placing, "find_spec", lambda name: name)
    name, *_, fsdp, fsdp_zero2, zero3, zero2, quantised = row
    # what would be refused beside the method
    knobs = ("data.train=/nowhere.jsonl", f"method={name}", "optimizer=adamw", "trainer.precision=32-true")
    on_cpu = ("trainer.accelerator=cpu", "trainer.devices=2")
    for cell, more, words in (
        (fsdp, ("trainer=fsdp", *on_cpu), "trainer.strategy is fsdp:"),
        (fsdp_zero2, ("trainer=fsdp_zero2", *on_cpu), "trainer.strategy is fsdp_zero2:"),
        (zero3, ("trainer=deepspeed", *on_cpu), "trainer.strategy is deepspeed:"),
        (zero2, ("trainer=deepspeed_zero2", *on_cpu), "trainer.strategy is deepspeed_zero2:"),
        ("no", ("trainer.strategy=deepspeed_stage_3",), "trainer.strategy is deepspeed_stage_3: must be one of"),
    ):
        with pytest.raises(UserError) as caught:
            glm_lightning.train(overrides("refused", *knobs, *more))
        assert any(words in problem for problem in caught.value.problems) == (cell == "no"), caught.value.problems
    assert quantised in ("yes", "no")  # tests/methods/test_method_runs.py tries it
