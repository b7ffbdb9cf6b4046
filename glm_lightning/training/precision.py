"""Which precision a run computes in, and which type its weights are held in."""

from __future__ import annotations

from typing import NamedTuple

import torch

from glm_lightning.models.source import WeightsDtype
from glm_lightning.types import UserError

SMALL = 50_000_000
"""Parameters below which bfloat16 gains nothing on a CPU: converting costs more than the faster products save."""


ALIASES = {"64": "64-true", "32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}
"""Lightning's short names, and what it takes them for."""

NAMES = ("64-true", "32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true")


class Precision(NamedTuple):
    """A precision of Lightning's, and why."""

    name: str
    reason: str


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
        return Precision(ALIASES.get(requested, requested), "as asked")
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
    if torch.cpu._is_amx_tile_supported():
        return Precision("bf16-mixed", "this CPU multiplies bfloat16 matrices in hardware (AMX)")
    if torch.cpu._is_avx512_bf16_supported():
        return Precision("bf16-mixed", "this CPU multiplies bfloat16 in hardware (AVX-512)")
    return Precision("32-true", "this CPU has no bfloat16 hardware")


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
