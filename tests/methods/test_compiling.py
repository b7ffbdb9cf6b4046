"""Compiled layers compute the same numbers, and their weights keep their names."""

from __future__ import annotations

import functools

import pytest
import torch
from tiny_families import batch, made, network_of
from torch import nn

from glm_lightning.methods.base import Method
from glm_lightning.models import compiling, cpu_rotary, elementwise
from glm_lightning.objectives.sft import SFT
from glm_lightning.types import IGNORE, Batch, UserError

# what torch's tracer does inside is warned of by torch itself
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*should not be instantiated:DeprecationWarning",
    "ignore:.*script_method. is deprecated:DeprecationWarning",
    "ignore:The .grad attribute of a Tensor:UserWarning",
)


def packed(lengths: tuple[int, ...], *, seed: int) -> Batch:
    """One row of several samples."""
    ids = torch.randint(2, 94, (1, sum(lengths)), generator=torch.Generator().manual_seed(seed))
    labels = ids.clone()
    labels[:, ::3] = IGNORE
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    return Batch.of(ids, labels, torch.tensor([ids.shape[1]]), step_tokens=9, rows=[0], position_ids=positions)


BATCHES = (packed((5, 11, 6), seed=1), packed((9, 8), seed=2))


def outcome(method: Method) -> list[torch.Tensor]:
    """Losses, and the gradients of all batches together."""
    losses = []
    for each in BATCHES:
        torch.manual_seed(5)  # of dropout
        losses.append(SFT().loss(method.network, each).total)
    method.zero_grad()
    torch.stack(losses).sum().backward()
    return [torch.stack(losses).detach(), *(parameter.grad for parameter in method.trained().values())]


def check(name: str, *, checkpointing: bool, **changes: object) -> None:
    torch.compiler.reset()
    plain, compiled = (made(name, network_of("glm"), **changes) for _ in range(2))
    for method in (plain, compiled):
        elementwise.use(method.network)
        cpu_rotary.use(method.network)
    names = list(compiled.network.state_dict())
    if checkpointing:
        compiled.network.activation_checkpointing_enable({"use_reentrant": False})
    assert compiling.compile_layers(compiled.network).startswith("1 of 2 layers are compiled")
    assert list(compiled.network.state_dict()) == names
    for ours, wanted in zip(outcome(compiled), outcome(plain), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=2e-5, atol=2e-5)


@pytest.fixture
def traced_only(monkeypatch):
    """Whole layers become graphs, which are then run by torch's own kernels: the C++ compiler takes long."""
    backend = functools.partialmethod(nn.Module.compile, backend="aot_eager", fullgraph=True)
    monkeypatch.setattr(nn.Module, "compile", backend)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize(
    ("name", "changes"),
    [("lora", {}), ("lora", {"dropout": 0.2}), ("full", {}), ("ptuning_v2", {"prefix_length": 3})],
    ids=["lora", "lora-dropout", "full", "ptuning_v2"],
)
def test_a_layer_is_one_graph_that_computes_the_same(traced_only, name, changes, checkpointing):
    check(name, checkpointing=checkpointing, **changes)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", ["lora", "ptuning_v2"])
def test_compiled_kernels_compute_the_same(name):
    check(name, checkpointing=False)


@pytest.fixture
def programs(monkeypatch):
    """The graphs that would be compiled; they run as they are."""
    torch.compiler.reset()
    seen = []

    def backend(graph, inputs):
        seen.append(graph)
        return graph

    monkeypatch.setattr(nn.Module, "compile", functools.partialmethod(nn.Module.compile, backend=backend))
    return seen


def test_layers_run_as_written_while_that_is_asked(programs):
    method = made("lora", network_of("glm"))
    compiling.compile_layers(method.network)
    with torch.no_grad():
        with compiling.off():
            SFT().loss(method.network, batch())
        assert not programs
        SFT().loss(method.network, batch())
    assert programs


def test_a_packed_run_makes_one_program(train, programs):
    """Compiling takes long: trying whether samples of a row see each other does not ask for it."""
    train("run", "model.compile=true", "data.packing=true", "trainer.max_steps=2")
    assert len(programs) == 1


def test_without_a_compiler_the_layers_stay_and_it_is_told(monkeypatch):
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def none() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    method = made("lora", network_of("glm"))
    assert "no C++ compiler was found (install g++" in compiling.compile_layers(method.network)
    assert all(layer._compiled_call_impl is None for layer in compiling.layers(method.network))


def test_a_network_without_layers_is_refused():
    with pytest.raises(UserError, match="Linear has no decoder layers"):
        compiling.compile_layers(nn.Linear(2, 2))
