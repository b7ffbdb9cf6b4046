"""Which precision is chosen, and which type the weights are loaded in."""

import pytest
import torch

from glm_lightning.models import precision
from glm_lightning.types import UserError


@pytest.mark.parametrize(
    ("amx", "avx", "expected"),
    [(True, True, "bf16-mixed"), (False, True, "bf16-mixed"), (False, False, "32-true")],
)
def test_a_cpu_uses_what_its_hardware_multiplies(monkeypatch, amx, avx, expected):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)
    assert precision.choose("auto", device="cpu", num_parameters=10**9).name == expected
    assert precision.choose("auto", device="cpu", num_parameters=10**6).name == "32-true"


@pytest.mark.parametrize(("bfloat16", "expected"), [(True, "bf16-mixed"), (False, "16-mixed")])
def test_a_gpu_uses_bfloat16_where_it_has_it(monkeypatch, bfloat16, expected):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bfloat16)
    chosen = precision.choose("auto", device="cuda", num_parameters=10**6)
    assert chosen.name == expected
    assert "a card" in chosen.reason


@pytest.mark.parametrize(
    ("asked", "name"), [("32", "32-true"), ("64", "64-true"), ("16", "16-mixed"), ("bf16", "bf16-mixed")]
)
def test_short_names_are_lightnings(asked, name):
    assert precision.choose(asked, device="cuda", num_parameters=1).name == name


@pytest.mark.parametrize("asked", ["12-true", "transformer-engine"])
def test_other_precisions_are_refused(asked):
    with pytest.raises(UserError, match="must be one of auto, 64-true"):
        precision.check(asked, device="cpu")


def test_a_gpu_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no CUDA device here"):
        precision.check("auto", device="cuda")


@pytest.mark.parametrize(
    ("asked", "has", "notices"), [("bf16", "", 1), ("bf16-true", "", 1), ("bf16", "AMX", 0), ("32", "", 0)]
)
def test_bfloat16_without_hardware_for_it_is_told(monkeypatch, asked, has, notices):
    monkeypatch.setattr(precision, "_multiplies_bfloat16", lambda: has or None)
    seconds = {torch.bfloat16: 0.42, torch.float32: 0.01}
    monkeypatch.setattr(precision, "_seconds_of_product", lambda dtype: seconds[dtype])
    chosen = precision.choose(asked, device="cpu", num_parameters=10**9)
    assert len(chosen.notices) == notices
    assert all("takes 42 times as long as in float32 (measured" in notice for notice in chosen.notices)
    assert not precision.choose(asked, device="cuda", num_parameters=1).notices


def test_a_product_is_timed():
    assert 0 < precision._seconds_of_product(torch.float32) < 1


@pytest.mark.parametrize(
    ("name", "device", "expected"),
    [("bf16-mixed", "cuda", "high"), ("32-true", "cuda", "highest"), ("bf16-mixed", "cpu", "highest")],
)
def test_tf32_only_where_fewer_digits_are_kept_anyway(monkeypatch, name, device, expected):
    said = ["highest"]
    monkeypatch.setattr(torch, "set_float32_matmul_precision", said.append)
    precision.allow_tf32(name, device=device)
    assert said[-1] == expected


def test_a_float32_run_does_not_keep_the_tf32_of_one_before(monkeypatch):
    said = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", said.append)
    precision.allow_tf32("bf16-mixed", device="cuda")
    precision.allow_tf32("32-true", device="cuda")
    assert said == ["high", "highest"]


def test_what_is_asked_for_is_taken():
    assert precision.choose("64-true", device="cuda", num_parameters=1).name == "64-true"


@pytest.mark.parametrize(
    ("name", "trains_base", "stored", "expected"),
    [
        ("32-true", False, torch.bfloat16, "float32"),
        ("64-true", True, torch.float32, "float64"),
        ("bf16-mixed", True, torch.bfloat16, "float32"),
        ("bf16-mixed", False, torch.bfloat16, "bfloat16"),
        ("bf16-mixed", False, torch.float16, "bfloat16"),
        ("16-mixed", False, torch.bfloat16, "float16"),
        ("bf16-mixed", False, torch.float32, "auto"),
    ],
)
def test_frozen_weights_are_never_widened(name, trains_base, stored, expected):
    assert precision.weights_dtype(name, trains_base=trains_base, stored=stored) == expected
