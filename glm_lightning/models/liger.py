"""Liger's Triton kernels in the place of a network's norms and gated activations.

Liger's own switch knows one GLM of five and says nothing where it changes nothing; here modules are recognised by what
they compute, and counted. The kernels themselves run in `tests/gpu` only.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from glm_lightning.models import elementwise
from glm_lightning.types import UserError


def problems(device: str) -> list[str]:
    """Why Liger's kernels cannot be used for a run on ``device``."""
    if device != "cuda":
        return ["model.liger is true: its kernels are for GPUs; set model.liger=false"]
    try:
        import liger_kernel.ops  # noqa: F401
    except ImportError as error:
        return [f"model.liger is true: {error}; install it with pip install liger-kernel, or set model.liger=false"]
    return []


def apply(network: nn.Module) -> str:
    """Let norms and gated activations of ``network`` run as one kernel each, and say how many.

    Raises:
        UserError: nothing in this network fits.
    """
    found = elementwise.use(network, elementwise.Functions(_rms_norm, _silu_mul, _silu_mul_of_halves))
    if not found:
        raise UserError(f"model.liger is true: no module of {type(network).__name__} fits; set model.liger=false")
    return "Liger kernels compute " + " and ".join(f"{count} {kind}" for kind, count in sorted(found.items()))


def _rms_norm(states: Tensor, weight: Tensor, eps: float) -> Tensor:
    from liger_kernel.ops import LigerRMSNormFunction

    # scaled in the type of the states, as transformers does ("llama"); not in place, as gradients are added up
    return cast(Tensor, LigerRMSNormFunction.apply(states, weight, eps, 0.0, "llama", False))


def _silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    from liger_kernel.ops import LigerSiLUMulFunction

    return cast(Tensor, LigerSiLUMulFunction.apply(gate, up))


def _silu_mul_of_halves(states: Tensor) -> Tensor:
    return _silu_mul(*states.chunk(2, dim=-1))
