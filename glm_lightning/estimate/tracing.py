"""Run a training step on tensors that have shapes and no contents, and count the bytes that are alive.

Every operation goes to torch's fake tensors, which are made, kept for the backward pass and freed as real ones would
be, casts of autocast and recomputation included; so nothing is assumed about an architecture or a method. What only a
kernel knows (its scratch space) is not seen.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from glm_lightning.models.prefix import attention
from glm_lightning.types import Batch, Loss


@dataclass(frozen=True, slots=True)
class Shape:
    """A micro-batch: ``rows`` of ``length`` positions, of which ``supervised`` in all are learned."""

    rows: int
    length: int
    supervised: int
    packed: bool = False

    @property
    def positions(self) -> int:
        """Positions of all rows, padding included."""
        return self.rows * self.length


@dataclass(frozen=True, slots=True)
class Trace:
    """What a training step held, in bytes, weights and optimizer states left out, and what it computed."""

    kept: int  # alive when the output layer begins: what the backward pass needs, the last step's gradients left out
    head: int  # most alive inside the output layer and the loss, beyond `kept`
    peak: int  # most alive at any time, gradients included
    gradients: int  # of everything trained
    optimizer: int  # states of the optimizer after a step
    step: int  # most that the optimizer's step takes for itself beside its states
    flops: int  # floating-point operations of the matrix products, forwards and backwards


class Alive(TorchDispatchMode):
    """Counts the bytes of the tensors that are made while it is entered, until they are freed."""

    def __init__(self, known: Sequence[Tensor] = ()) -> None:
        """``known`` are tensors whose bytes do not count."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation and count what it has made; views share the bytes of what they look at."""
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known or key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.now -= self._sizes.pop(key)

    def restart(self) -> None:
        """Forget the peak so far."""
        self.peak = self.now


def trace(
    network: nn.Module,
    shape: Shape,
    *,
    loss: Callable[[nn.Module, Batch], Loss],
    make_optimizer: Callable[[], torch.optim.Optimizer],
    autocast: torch.dtype | None,
    accumulates: bool,
) -> Trace:
    """A training step of ``network`` (adapted, on the meta device, and used up by this) on a micro-batch of ``shape``.

    ``make_optimizer`` is called when the parameters are fake; ``autocast`` is the type of a mixed precision. A run that
    ``accumulates`` holds the step's gradients through its later micro-batches; any other holds the last step's until
    its backward pass begins.
    """
    # What networks build at their first pass, such as masks, need not be fake from the beginning.
    with FakeTensorMode(allow_non_fake_inputs=True), _without_contents(network) as held, _written_triangles():
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        alive, flops = Alive(held), FlopCounterMode(display=False)
        with alive:
            for parameter in trained:
                parameter.grad = torch.empty_like(parameter)
            gradients = alive.now
            optimizer = make_optimizer()  # whose states live as long as this name
            optimizer_bytes, step = _stepped(alive, optimizer)
            with flops, _mixed(autocast):
                kept, head, peak = _passes(network, _batch(shape), loss, alive, trained, accumulates=accumulates)
    return Trace(
        kept=kept - optimizer_bytes - gradients,
        head=head,
        peak=peak - optimizer_bytes,
        gradients=gradients,
        optimizer=optimizer_bytes,
        step=step,
        flops=flops.get_total_flops(),
    )


def trace_answers(network: nn.Module, *, rows: int, length: int, autocast: torch.dtype | None) -> int:
    """Most bytes alive while ``rows`` prompts are read into a cache; ``length`` positions, the answers' among them.

    Reading is what takes most: of the tokens that follow, each is one position. ``network`` is used up by this.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), _without_contents(network) as held:
        alive = Alive(held)
        with alive, torch.no_grad(), _written_triangles(), _mixed(autocast):
            ids = torch.empty((rows, length), dtype=torch.int64)
            network.eval()(input_ids=ids, use_cache=True, logits_to_keep=1)
    return alive.peak


def _passes(
    network: nn.Module,
    batch: Batch,
    loss: Callable[[nn.Module, Batch], Loss],
    alive: Alive,
    trained: Sequence[nn.Parameter],
    *,
    accumulates: bool,
) -> tuple[int, int, int]:
    """Forwards and backwards: alive when the head begins, more inside it, most at any time."""
    before: list[int] = []
    peaks: list[int] = []

    def enter(*_: object) -> None:
        peaks.append(alive.peak)
        before.append(alive.now)
        alive.restart()

    head: nn.Module = network.get_output_embeddings()  # type: ignore[operator]
    with head.register_forward_pre_hook(enter):
        total = loss(network, batch).total
    inside = alive.peak
    if not accumulates:
        for parameter in trained:
            parameter.grad = None
    total.backward()
    return before[0], inside - before[0], max(*peaks, alive.peak)


def _stepped(alive: Alive, optimizer: torch.optim.Optimizer) -> tuple[int, int]:
    """Bytes of the states of ``optimizer``, and the most that its step takes beside them."""
    before = alive.now
    if type(optimizer).__module__.startswith("bitsandbytes"):
        _make_states(optimizer)  # its step itself reads memory, of which there is none
    else:
        optimizer.step()
    states, step = alive.now - before, alive.peak - alive.now
    alive.restart()
    return states, step


def _make_states(optimizer: Any) -> None:
    optimizer.check_overrides()
    # the 256 numbers that 8 bits stand for, which it would compute
    optimizer.name2qmap |= {name: torch.empty(256) for name in ("dynamic", "udynamic")}
    for group_index, group in enumerate(optimizer.param_groups):
        for index, parameter in enumerate(group["params"]):
            optimizer.init_state(group, parameter, group_index, index)


def _batch(shape: Shape) -> Batch:
    size = (shape.rows, shape.length)
    return Batch(
        input_ids=torch.empty(size, dtype=torch.int64),
        where=torch.empty(shape.supervised, dtype=torch.int64),
        targets=torch.empty(shape.supervised, dtype=torch.int64),
        lengths=torch.empty(shape.rows, dtype=torch.int64),
        step_tokens=max(1, shape.supervised),
        position_ids=torch.empty(size, dtype=torch.int64) if shape.packed else None,
    )


@contextlib.contextmanager
def _written_triangles() -> Iterator[None]:
    """Let a prefix's causal mask be written out, as the CPU does: torch's unwritten one cannot be fake."""
    names = vars(attention)
    original = names["causal_lower_right"]
    names["causal_lower_right"] = lambda queries, keys: torch.empty((queries, keys), dtype=torch.bool)
    try:
        yield
    finally:
        names["causal_lower_right"] = original


def _mixed(dtype: torch.dtype | None) -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext() if dtype is None else torch.autocast("cpu", dtype=dtype)


@contextlib.contextmanager
def _without_contents(network: nn.Module) -> Iterator[list[Tensor]]:
    """Exchange parameters and buffers for fake ones on the CPU; what was one tensor stays one."""
    exchanged: dict[int, Tensor] = {}

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in exchanged:
            made = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
            is_parameter = isinstance(tensor, nn.Parameter)
            exchanged[id(tensor)] = nn.Parameter(made, tensor.requires_grad) if is_parameter else made
        return exchanged[id(tensor)]

    # the originals stay alive, for their places in memory are their names
    originals = [*network.parameters(), *network.buffers()]
    for module in network.modules():
        for own in (module._parameters, module._buffers):
            for name, tensor in own.items():
                if tensor is not None:
                    own[name] = fake(tensor)  # type: ignore[assignment]
    yield list(exchanged.values())
    del originals
