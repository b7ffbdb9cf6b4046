"""Published memory sizes and rates of accelerators, and what of them a run can count on.

Rates are dense bfloat16 matrix products accumulated in float32 (float16 where a card has no bfloat16), without the
doubling that data sheets give for sparse matrices.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import psutil
import torch

from glm_lightning.config.nearest import by_likeness
from glm_lightning.estimate.tracing import Kernels
from glm_lightning.types import UserError

GIB = 2**30

CONTEXT = GIB // 2
"""What a CUDA process takes before the first tensor: driver, kernels, workspaces of cuBLAS. About 0.5 GiB."""

FRAGMENTS = 0.05
"""Share of its tensors that torch's caching allocator loses between blocks; an allowance, not a measurement."""

SMALL_BLOCKS = 3 * GIB // 10
"""What the C library keeps of small tensors on a CPU, which micro-batches of other shapes do not use again; measured:
0.1 to 0.4 GiB."""

UTILISATION = 0.4
"""Share of the published rate that training is taken to reach; PaLM reached 0.46 (arXiv:2204.02311, section 4)."""


@dataclass(frozen=True, slots=True)
class Device:
    """An accelerator, or a machine without one.

    Args:
        name: as users know it.
        gib: memory in GiB.
        rate: floating-point operations a second; None where it is not known.
        source: of the rate.
        kernels: whose are followed when memory is counted; ``cuda_math`` before Ampere, which has flash attention.
        beside: bytes that a process takes beside its tensors.
        fragments: what allocation loses, as a share of the tensors.
        small_blocks: bytes that it loses at most of small tensors.
    """

    name: str
    gib: float
    rate: float | None
    source: str
    kernels: Kernels = "cuda"
    beside: int = CONTEXT
    fragments: float = FRAGMENTS
    small_blocks: int = 0

    @property
    def size(self) -> int:
        """Bytes."""
        return int(self.gib * GIB)

    @property
    def room(self) -> int:
        """Bytes that are left to a run's tensors."""
        return int((self.size - self.beside - self.small_blocks) / (1 + self.fragments))

    def taken(self, tensors: int) -> int:
        """Bytes that a process with so many bytes of tensors takes."""
        return int(tensors * (1 + self.fragments)) + min(tensors, self.small_blocks) + self.beside


_AMPERE = "NVIDIA A100 data sheet"
_HOPPER = "NVIDIA H100 data sheet, half of the sparse rate"
DEVICES = (
    Device("T4", 16, 65e12, "NVIDIA T4 data sheet, float16", kernels="cuda_math"),
    Device("V100 16GB", 16, 125e12, "NVIDIA V100 data sheet, float16", kernels="cuda_math"),
    Device("V100 32GB", 32, 125e12, "NVIDIA V100 data sheet, float16", kernels="cuda_math"),
    Device("RTX 3090", 24, 71e12, "NVIDIA GA102 whitepaper"),
    Device("RTX 4090", 24, 165.2e12, "NVIDIA Ada whitepaper"),
    Device("RTX 5090", 32, 209.5e12, "NVIDIA RTX Blackwell whitepaper"),
    Device("A10", 24, 125e12, "NVIDIA A10 data sheet"),
    Device("L4", 24, 121e12, "NVIDIA L4 data sheet, half of the sparse rate"),
    Device("A40", 48, 149.7e12, "NVIDIA A40 data sheet"),
    Device("L40S", 48, 362e12, "NVIDIA L40S data sheet"),
    Device("A100 40GB", 40, 312e12, _AMPERE),
    Device("A100 80GB", 80, 312e12, _AMPERE),
    Device("H100 PCIe", 80, 756e12, _HOPPER),
    Device("H100 SXM", 80, 989e12, _HOPPER),
    Device("H200", 140, 989e12, "NVIDIA H200 data sheet, half of the sparse rate; 141 GB are 140 GiB of use"),
)


def shown(size: int) -> str:
    """Bytes in the unit that suits."""
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / 2**20:,.0f} MiB"


def find(name: str) -> Device:
    """The device of a name, whatever its case.

    Raises:
        UserError: the table has none of this name.
    """
    for device in DEVICES:
        if device.name.lower() == name.strip().lower():
            return device
    nearest = ", ".join(by_likeness(name, [device.name for device in DEVICES]))
    raise UserError(f"--device is {name!r}: must be one of {nearest} (nearest first); or give --memory 24GB")


def here(device: torch.device, *, processes: int = 1) -> Device:
    """The device of this machine, or its main memory, which ``processes`` share."""
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        kernels: Kernels = "cuda" if found.major >= 8 else "cuda_math"
        return Device(found.name, found.total_memory / GIB, None, "measured here", kernels)
    memory = psutil.virtual_memory().total / processes
    beside = psutil.Process().memory_info().rss
    return Device("this machine", memory / GIB, None, "measured here", "cpu", beside, 0.0, SMALL_BLOCKS)


def of_memory(text: str) -> Device:
    """Some GPU of a size such as ``24GB``, ``24GiB``, ``22000MiB`` or ``24``; GB are taken for what cards call so.

    Raises:
        UserError: it is no size.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([gm])i?b?)?\s*", text.lower())
    gib = 0.0 if found is None else float(found[1]) / (1024 if found[2] == "m" else 1)
    if not gib:
        raise UserError(f"--memory is {text!r}: must be a size above 0, such as 24GB or 24000MiB")
    return Device("a GPU", gib, None, "as asked")
