"""Students that begin as some layers of a network."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from tiny_families import config_of, ids
from transformers import AutoModelForCausalLM

from glm_lightning.models import Source
from glm_lightning.types import UserError

LAYERS = 5


def deep(family: str, **changes: int) -> Any:
    torch.manual_seed(0)
    config = config_of(family)
    for name, value in changes.items():
        setattr(config, name, value)
    setattr(config, "num_layers" if family == "chatglm" else "num_hidden_layers", LAYERS)
    network = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.1)
    return network.eval()


@pytest.mark.parametrize("family", ["glm", "glm4", "chatglm", "glm4_moe"])
@pytest.mark.parametrize(("which", "numbers"), [("first", [0, 1, 2]), ("spread", [0, 2, 4])])
def test_a_student_is_its_teacher_without_some_layers(
    family: str, which: Literal["first", "spread"], numbers: list[int], tmp_path: Path
) -> None:
    teacher = deep(family)
    teacher.save_pretrained(tmp_path)
    source = Source(path=str(tmp_path), num_layers=3, layers=which)
    student = source.load().eval()
    assert student.config.get_text_config().num_hidden_layers == 3
    # the same by hand: names of the teacher's weights, numbered anew
    renamed = {}
    for name, value in teacher.state_dict().items():
        found = re.search(r"layers\.(\d+)\.", name)
        if found is None or int(found[1]) in numbers:
            place = "" if found is None else f"layers.{numbers.index(int(found[1]))}."
            renamed[name if found is None else name.replace(found[0], place)] = value
    by_hand = AutoModelForCausalLM.from_config(source.config).eval()
    by_hand.load_state_dict(renamed)
    assert torch.equal(student(ids()).logits, by_hand(ids()).logits)
    # with a cache as without
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    assert torch.equal(student.generate(ids(1), **options), student.generate(ids(1), use_cache=False, **options))


def test_every_choice_of_layers_is_another_network(tiny_glm: Path) -> None:
    choices = [{}, {"num_layers": 1}, {"num_layers": 2}, {"num_layers": 2, "layers": "spread"}]
    assert len({Source(path=str(tiny_glm), **choice).fingerprint for choice in choices}) == 4  # type: ignore[arg-type]


def test_what_was_left_out_on_purpose_is_not_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    deep("glm").save_pretrained(tmp_path)
    Source(path=str(tmp_path), num_layers=2).load()
    assert "LOAD REPORT" not in caplog.text


def test_layers_whose_kind_is_told_by_their_place_are_refused(tmp_path: Path) -> None:
    deep("glm4_moe", first_k_dense_replace=2).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"layers of this network are of several kinds.* set model\.layers=first"):
        Source(path=str(tmp_path), num_layers=3, layers="spread").load()
