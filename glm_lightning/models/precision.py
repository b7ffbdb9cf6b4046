"""Which precision a run computes in, and which type its weights are held in."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch

from glm_lightning.models.source import WeightsDtype
from glm_lightning.types import UserError

SMALL = 50_000_000
"""Parameters below which bfloat16 gains nothing on a CPU: converting costs more than the faster products save. What
such a network does lies in its calls rather than in its tensors."""


ALIASES = {"64": "64-true", "32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}
"""Lightning's short names, and what it takes them for."""

NAMES = ("64-true", "32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true")


class Precision(NamedTuple):
    """A precision of Lightning's, and why."""

    name: str
    reason: str
    notices: Sequence[str] = ()


def check(requested: str, *, device: str) -> None:
    """Raise `UserError` for a precision that ``device`` has not."""
    name = ALIASES.get(requested, requested)
    if name not in (*NAMES, "auto"):
        raise UserError(f"trainer.precision is {requested}: must be one of auto, {', '.join(NAMES)}")
    if name in ("16-mixed", "16-true") and device == "cpu":
        raise UserError(f"trainer.precision is {requested}: a CPU has no float16; use bf16-mixed, 32-true or auto")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "trainer.accelerator is gpu: there is no CUDA device here; use trainer.accelerator=cpu, or trainer=ddp_cpu"
        )


def choose(requested: str, *, device: str, num_parameters: int) -> Precision:
    """The precision for ``requested`` (``auto`` or one of Lightning's) on ``device`` (cuda, cpu, mps)."""
    if requested != "auto":
        name = ALIASES.get(requested, requested)
        return Precision(name, "as asked", _slowness(name) if device == "cpu" else ())
    if device == "cuda":
        name = torch.cuda.get_device_name()
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Precision("bf16-mixed", f"{name} computes in bfloat16")
        return Precision("16-mixed", f"{name} has no bfloat16; float16 with a scaled loss")
    if device == "cpu":
        return _for_cpu(num_parameters)
    return Precision("32-true", f"{device} is used in float32")


def _for_cpu(num_parameters: int) -> Precision:
    if num_parameters < SMALL:
        return Precision("32-true", "a small network on a CPU is as fast in float32")
    if unit := _multiplies_bfloat16():
        return Precision("bf16-mixed", f"this CPU multiplies bfloat16 in hardware ({unit})")
    return Precision("32-true", "this CPU has no bfloat16 hardware")


def _multiplies_bfloat16() -> str | None:
    """The unit by which this CPU does."""
    if torch.cpu._is_amx_tile_supported():
        return "AMX"
    return "AVX-512" if torch.cpu._is_avx512_bf16_supported() else None


def _slowness(name: str) -> list[str]:
    """How much slower bfloat16 is than float32 where a CPU has no hardware for it, measured."""
    if name not in ("bf16-mixed", "bf16-true") or _multiplies_bfloat16():
        return []
    factor = _seconds_of_product(torch.bfloat16) / _seconds_of_product(torch.float32)
    return [
        f"trainer.precision is {name}: this CPU has no bfloat16 hardware; a matrix product takes {factor:.0f} times as "
        "long as in float32 (measured just now); set trainer.precision=32-true, or auto"
    ]


def _seconds_of_product(dtype: torch.dtype, *, size: int = 256) -> float:
    """The fastest of three square products."""
    factor = torch.ones(size, size, dtype=dtype)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        factor @ factor
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def allow_tf32(name: str, *, device: str) -> None:
    """Let a GPU multiply in TF32 what is left in float32 beside 16-bit products, which have fewer digits still.

    In float32 it multiplies exactly, whatever an earlier run in this process was allowed.
    """
    if device == "cuda":
        torch.set_float32_matmul_precision("highest" if name.startswith(("32", "64")) else "high")


def autocast(precision: str, *, device: str) -> AbstractContextManager[Any]:
    """What a forward pass runs in: mixed precisions compute in their type, the others in that of the weights."""
    computed = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
    if precision not in computed:
        return contextlib.nullcontext()
    return torch.autocast(device, dtype=computed[precision])


def weights_dtype(precision: str, *, trains_base: bool, stored: torch.dtype) -> WeightsDtype:
    """The type the network is loaded in.

    True precisions hold everything in their type. Mixed ones hold trained weights in float32 (small updates would
    round away in 16 bits) and frozen weights as they are stored; a stored 16-bit type that is not the one computed in
    is exchanged for that, at the same size, since it would be converted at every use.
    """
    true: dict[str, WeightsDtype] = {
        "32-true": "float32", "64-true": "float64", "bf16-true": "bfloat16", "16-true": "float16",
    }  # fmt: skip
    if precision in true:
        return true[precision]
    if trains_base:
        return "float32"
    computed: dict[str, WeightsDtype] = {"bf16-mixed": "bfloat16", "16-mixed": "float16"}
    return computed[precision] if stored in (torch.bfloat16, torch.float16) else "auto"
