"""Liger's Triton kernels in the place of a network's norms and gated activations.

Liger's own switch knows one GLM of five and says nothing where it changes nothing; here modules are recognised by what
they compute, and counted. The kernels themselves run in `tests/gpu` only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from types import MethodType
from typing import Any, cast

from torch import Tensor, nn
from transformers.activations import SiLUActivation

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
    found: Counter[str] = Counter()
    for module in network.modules():
        if made := _replacement(module):
            kind, forward = made
            module.forward = MethodType(forward, module)
            found[kind] += 1
    if not found:
        raise UserError(f"model.liger is true: no module of {type(network).__name__} fits; set model.liger=false")
    return "Liger kernels compute " + " and ".join(f"{count} {kind}" for kind, count in sorted(found.items()))


def _replacement(module: nn.Module) -> tuple[str, Callable[..., Tensor]] | None:
    children = dict(module.named_children())
    if type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
        return "RMSNorm", _rms_norm
    if not isinstance(getattr(module, "activation_fn", getattr(module, "act_fn", None)), nn.SiLU | SiLUActivation):
        return None
    if children.keys() >= {"gate_up_proj", "down_proj"}:
        return "SwiGLU", _swiglu_of_one
    if children.keys() >= {"gate_proj", "up_proj", "down_proj"}:
        return "SwiGLU", _swiglu_of_two
    return None


def _rms_norm(self: Any, hidden_states: Tensor) -> Tensor:
    from liger_kernel.ops import LigerRMSNormFunction

    # scaled in the type of the states, as transformers does ("llama"); not in place, as gradients are added up
    return cast(
        Tensor, LigerRMSNormFunction.apply(hidden_states, self.weight, self.variance_epsilon, 0.0, "llama", False)
    )


def _swiglu_of_one(self: Any, hidden_states: Tensor) -> Tensor:
    gate, up = self.gate_up_proj(hidden_states).chunk(2, dim=-1)
    return cast(Tensor, self.down_proj(_silu_mul(gate, up)))


def _swiglu_of_two(self: Any, hidden_states: Tensor) -> Tensor:
    return cast(Tensor, self.down_proj(_silu_mul(self.gate_proj(hidden_states), self.up_proj(hidden_states))))


def _silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    from liger_kernel.ops import LigerSiLUMulFunction

    return cast(Tensor, LigerSiLUMulFunction.apply(gate, up))
