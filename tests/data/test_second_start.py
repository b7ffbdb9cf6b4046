"""What is remembered from one start to the next, and when it counts no more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from glm_lightning import templates
from glm_lightning.data.module import DataModule
from glm_lightning.data.plan import Plan
from glm_lightning.tokenizers import Tokenizer
from glm_lightning.types import UserError

ROWS = [{"prompt": f"question {i} " + "long " * (i % 9), "response": f"answer {i}"} for i in range(40)]


@pytest.fixture
def module(tmp_path: Path, glm4_tokenizer: Tokenizer) -> Any:
    template = templates.find("glm4", glm4_tokenizer, "glm")

    def load(rows: list[Any] = ROWS, name: str = "a.jsonl", **knobs: Any) -> DataModule:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        settings = {"cache_dir": str(tmp_path / "cache"), "max_length": 64, "max_tokens": 128, "val": 8}
        made = DataModule(train=str(path), **(settings | knobs))
        made.load(glm4_tokenizer, template)
        return made

    return load


def test_a_plan_is_measured_once(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = module().schedule(world_size=1, accumulate="auto", epochs=2)
    assert first.accumulate == first.needed(2) > 1
    measured: list[int] = []
    monkeypatch.setattr(Plan, "needed", lambda self, epochs: measured.append(epochs) or 7)
    again = module().schedule(world_size=1, accumulate="auto", epochs=2)
    assert (again.accumulate, measured) == (first.accumulate, [])
    with pytest.raises(UserError, match="accumulate_grad_batches is 1"):
        module().schedule(world_size=1, accumulate=1, epochs=2)
    others: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({}, {"epochs": 3}),
        ({}, {"world_size": 2}),
        ({"max_tokens": 192}, {}),
        ({"batch_size": 8}, {}),
        ({"seed": 5}, {}),
        ({"val": 9}, {}),
        ({"packing": True}, {}),
        ({"group_steps": 2}, {}),
        ({"pad_to_multiple": 16}, {}),
        ({"rows": ROWS[:-1], "name": "b.jsonl"}, {}),
    ]
    for knobs, asked in others:
        plan = module(**knobs).schedule(**({"world_size": 1, "accumulate": "auto", "epochs": 2} | asked))
        assert plan.accumulate == 7, (knobs, asked)
    assert len(measured) == len(others)


def test_a_run_goes_on_with_the_same_samples_wherever_they_lie(module: Any) -> None:
    state = module().state_dict()
    reordered = [{"response": row["response"], "prompt": row["prompt"]} for row in ROWS]
    module(reordered, "moved.jsonl").load_state_dict(state)
    changed = [*ROWS[:-1], ROWS[-1] | {"response": "another"}]
    with pytest.raises(UserError, match=r"data.data: the checkpoint was made with"):
        module(changed, "changed.jsonl").load_state_dict(state)
    unlearned = module([*ROWS[:-1], {"prompt": ROWS[-1]["response"], "response": ROWS[-1]["prompt"]}], "turned.jsonl")
    with pytest.raises(UserError, match=r"data.data: the checkpoint was made with"):
        unlearned.load_state_dict(state)
