"""Decoder layers compiled by torch, one program for all of them and for every shape."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from glm_lightning.types import UserError


def layers(network: nn.Module) -> list[nn.Module]:
    """The decoder layers of ``network``."""
    return [module for module in network.modules() if isinstance(module, GradientCheckpointingLayer)]


def compile_layers(network: nn.Module) -> str:
    """Compile each decoder layer but the first where it stands, and say so; names of weights and modules stay.

    Shapes are unknown from the start: one program serves all lengths, so that a resumed run, which sees another length
    first, computes the same numbers. What is compiled draws random numbers as what is not.

    Raises:
        UserError: there is no layer to compile.
    """
    found = layers(network)
    if not found:
        raise UserError(
            f"model.compile is true: {type(network).__name__} has no decoder layers; set model.compile=false"
        )
    if missing := _missing_compiler(next(network.parameters()).device.type):
        return f"model.compile: {missing}; the layers run as they are"
    from torch._dynamo import config as tracing
    from torch._inductor import config as generating

    generating.fallback_random = True
    if generating.cpp.vec_isa_ok is None:
        # What the processor has is known: to try each set of instructions on the compiler takes some ten seconds.
        generating.cpp.vec_isa_ok = True
    # of a prefix each layer takes its own number of the stack
    tracing.recompile_limit = max(tracing.recompile_limit, len(found) + 8)
    tracing.accumulated_recompile_limit = max(tracing.accumulated_recompile_limit, 8 * tracing.recompile_limit)
    # Not the first: where its input needs no gradient, it would take a program of its own, and as long to make it.
    for layer in found[1:]:
        layer.compile(dynamic=True)
    return (
        f"{len(found) - 1} of {len(found)} layers are compiled when the first micro-batch comes, which takes some time"
    )


def _missing_compiler(device: str) -> str | None:
    """What is missing to build kernels for ``device``."""
    if device != "cpu":
        from torch.utils._triton import has_triton

        return None if has_triton() else "Triton, which makes kernels for GPUs, is not installed"
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "no C++ compiler was found (install g++, or name one in the environment variable CXX)"
    return None


@contextlib.contextmanager
def off() -> Iterator[None]:
    """While it is entered, compiled layers run as written: answers grow by a token, and validation is short."""
    with torch.compiler.set_stance("force_eager"):
        yield
