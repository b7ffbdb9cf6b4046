"""Run a training step on tensors that have shapes and no contents, and count the bytes that are alive.

Every operation goes to torch's fake tensors, which are made, kept for the backward pass and freed as real ones would
be, casts of autocast and recomputation included; so nothing is assumed about an architecture or a method. What only a
kernel knows (its scratch space) is not seen.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel, masking_utils

from glm_lightning.estimate.alive import Alive
from glm_lightning.losses import chunks
from glm_lightning.methods import layers
from glm_lightning.models import cpu_attention
from glm_lightning.models.prefix import attention
from glm_lightning.types import Batch, Loss

Kernels = Literal["cpu", "cuda", "cuda_math"]
"""Whose kernels are followed: a GPU's before Ampere have no flash attention, and write its scores out."""

Stage = Literal["forward", "head", "step", "validation", "prompts", "answers"] | int
"""``forward`` up to the output layer, ``head`` in it and in the loss, the number of a layer: in its backward pass; the
optimizer's ``step``; ``validation``; ``prompts`` of test rows are read, and ``answers`` given."""


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
class Answers:
    """Test rows that are answered at once: the positions of the longest prompt, and of the longest answer."""

    rows: int
    prompt: int
    new: int


@dataclass(frozen=True, slots=True)
class Trace:
    """What a run held, in bytes, the network's own weights left out, and what it computed."""

    gradients: int  # of everything trained
    optimizer: int  # states of the optimizer after a step
    kept: int  # what the backward pass needs, when the output layer begins
    peaks: Mapping[Stage, int]  # most alive in each stage, gradients and optimizer included where they are there
    flops: int  # floating-point operations of one micro-batch, forwards and backwards


def extended(few: Trace, one_more: Trace, *, more: int) -> Trace:
    """``few`` with ``more`` of what ``one_more`` has one more of, each of which takes the same in every stage."""

    def number(small: int, large: int) -> int:
        return small + more * (large - small)

    return Trace(
        gradients=number(few.gradients, one_more.gradients),
        optimizer=number(few.optimizer, one_more.optimizer),
        kept=number(few.kept, one_more.kept),
        peaks={stage: number(most, one_more.peaks[stage]) for stage, most in few.peaks.items()},
        flops=number(few.flops, one_more.flops),
    )


def trace(
    network: nn.Module,
    shape: Shape,
    *,
    loss: Callable[[nn.Module, Batch], Loss],
    make_optimizer: Callable[[], torch.optim.Optimizer],
    autocast: torch.dtype | None = None,
    accumulates: bool = False,
    validation: Shape | None = None,
    answers: Answers | None = None,
    kernels: Kernels = "cpu",
    sharded: bool = False,
) -> Trace:
    """A training step of ``network`` on a micro-batch, and a micro-batch of validation and of answers behind it.

    Args:
        network: adapted, on the meta device.
        shape: of the micro-batch.
        loss: of the objective.
        make_optimizer: called when the parameters are fake.
        autocast: the type of a mixed precision.
        accumulates: whether a step has several micro-batches. Then its gradients are held while the later ones run; any
            other run holds the last step's until its own backward pass begins.
        validation: the largest micro-batch of validation, if there is any.
        answers: the largest batch of answers, if there is any.
        kernels: whose are followed.
        sharded: whether weights are put together in the type of ``autocast``, which then makes no copies of them.
    """
    with _without_contents(network, kernels, counts_casts=not sharded) as alive:
        run = _Run(network, alive, loss=loss, autocast=autocast)
        run.begin(make_optimizer, foreach=kernels != "cpu")
        run.learn(shape, accumulates=accumulates)
        if validation is not None:
            run.validate(validation)
        if answers is not None:
            run.answer(answers)
    return Trace(run.gradients, run.optimizer, run.kept, alive.peaks, run.flops)


class _Run:
    """The parts of a run, in their order, on a network of fake tensors."""

    def __init__(
        self,
        network: nn.Module,
        alive: Alive,
        *,
        loss: Callable[[nn.Module, Batch], Loss],
        autocast: torch.dtype | None,
    ) -> None:
        self._network, self._alive, self._loss, self._autocast = network, alive, loss, autocast
        self._trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self._states: Any = None
        self.gradients = self.optimizer = self.kept = self.flops = 0

    def begin(self, make_optimizer: Callable[[], torch.optim.Optimizer], *, foreach: bool) -> None:
        """Gradients are there, and the optimizer takes a step."""
        self._give_gradients()
        self.gradients = self._alive.now
        self._alive.enter_stage("step")
        self._states = optimizer = make_optimizer()  # its states live as long as it does
        if type(optimizer).__module__.startswith("bitsandbytes"):
            _make_states(optimizer)  # its step itself reads memory, of which there is none
        else:
            for group in optimizer.param_groups:
                # what torch chooses on a GPU where nothing else is asked for
                group["foreach"] = foreach and not group.get("fused") and group.get("foreach") is not False
            optimizer.step()
        self.optimizer = self._alive.now - self.gradients

    def learn(self, shape: Shape, *, accumulates: bool) -> None:
        """One micro-batch forwards and backwards."""
        alive = self._alive
        before, flops = alive.now, alive.flops
        alive.enter_stage("forward")
        # what transformers asks is whether rows hold one sample
        alive.answer = not shape.packed
        self._network.train()
        with self._watched(), self._mixed():
            batch = _batch(shape)
            total = self._loss(self._network, batch).total
        self.kept -= before
        if not accumulates:
            for parameter in self._trained:
                parameter.grad = None
        total.backward()
        self.flops = alive.flops - flops

    def validate(self, shape: Shape) -> None:
        """One micro-batch forwards, while the last step's gradients are still there."""
        self._give_gradients()
        self._alive.enter_stage("validation")
        self._alive.answer = not shape.packed
        self._network.eval()
        with torch.no_grad(), self._mixed():
            self._loss(self._network, _batch(shape))

    def answer(self, answers: Answers) -> None:
        """Prompts of several lengths are read into a cache, and the last token of the longest answer is chosen."""
        self._give_gradients()
        self._alive.enter_stage("prompts")
        # what transformers asks is whether nothing is padded
        self._alive.answer = False
        network: Any = self._network.eval()
        with torch.no_grad(), self._mixed():
            ids = torch.empty((answers.rows, answers.prompt), dtype=torch.int64)
            mask = torch.empty_like(ids)
            cache = network(input_ids=ids, attention_mask=mask, use_cache=True, logits_to_keep=1).cache
            self._alive.enter_stage("answers")
            for number, layer in enumerate(cache.layers):
                if layer.is_initialized:
                    last = (held[:, :, :1].expand(-1, -1, answers.new, -1) for held in (layer.keys, layer.values))
                    cache.update(*last, number)

    def _give_gradients(self) -> None:
        for parameter in self._trained:
            if parameter.grad is None:
                parameter.grad = torch.empty_like(parameter)

    def _mixed(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext() if self._autocast is None else torch.autocast("cpu", dtype=self._autocast)

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """Tell the stages of a forward pass, and of the backward pass that follows it, from one another."""
        network = cast(PreTrainedModel, self._network)
        handles = [
            block.register_forward_hook(functools.partial(self._leaves_block, number))
            for number, block in enumerate(layers.blocks(network))
        ]
        handles.append(network.get_output_embeddings().register_forward_pre_hook(self._enters_head))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _leaves_block(self, number: int, block: nn.Module, inputs: Any, output: Any) -> None:
        states = output if isinstance(output, Tensor) else output[0]
        if states.requires_grad:
            states.register_hook(lambda gradient: self._alive.enter_stage(number))

    def _enters_head(self, *_: object) -> None:
        self.kept = self._alive.now
        self._alive.enter_stage("head")


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
        cu_seqlens=torch.empty(shape.rows + 1, dtype=torch.int32) if shape.packed else None,
        max_seqlen=shape.length,
    )


@contextlib.contextmanager
def _without_contents(network: nn.Module, kernels: Kernels, *, counts_casts: bool) -> Iterator[Alive]:
    """While the block runs, ``network`` and all tensors that are made have no contents, and are counted."""
    with contextlib.ExitStack() as stack:
        # transformers would write a mask out where it cannot read whether it needs one
        stack.enter_context(_exchanged(masking_utils, "is_tracing", lambda *_: False))
        stack.enter_context(_exchanged(attention, "causal_lower_right", _triangle))
        stack.enter_context(_exchanged(chunks, "blocks", functools.partial(_two_blocks, chunks.blocks, kernels)))
        if kernels != "cpu":
            # a GPU's own kernel keeps the samples of a row apart, and holds what this one holds
            apart = kernels == "cuda"
            stack.enter_context(_exchanged(cpu_attention, "fits", lambda *states: apart and states[-1] is not None))
            stack.enter_context(_CudaAutocast())
        if kernels == "cuda_math":
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        # What networks build at their first pass, such as masks, need not be fake from the beginning.
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        alive = Alive(stack.enter_context(_faked(network)), answer=True, counts_casts=counts_casts)
        stack.enter_context(alive)
        yield alive


class _CudaAutocast(TorchFunctionMode):
    """What autocast leaves in float32 on a GPU and not on a CPU, of what these networks do."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.layer_norm and torch.is_autocast_enabled("cpu"):
            args = [each.float() if isinstance(each, Tensor) else each for each in args]
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _exchanged(module: ModuleType, name: str, other: Any) -> Iterator[None]:
    names = vars(module)
    own, names[name] = names[name], other
    try:
        yield
    finally:
        names[name] = own


def _two_blocks(blocks: Callable[..., list[slice]], kernels: Kernels, *size: int, kind: str) -> list[slice]:
    """Two of a chunk's blocks: the one before is still there when one is made, and further ones take as much."""
    return blocks(*size, kind="cpu" if kernels == "cpu" else "cuda")[:2]


def _triangle(queries: int, keys: int) -> Tensor:
    """A prefix's causal mask as it is written out on a CPU: torch's unwritten one cannot be fake."""
    return torch.empty((queries, keys), dtype=torch.bool)


@contextlib.contextmanager
def _faked(network: nn.Module) -> Iterator[list[Tensor]]:
    """Give ``network`` fake parameters and buffers on the CPU; what was one tensor stays one."""
    exchanged: dict[int, Tensor] = {}

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in exchanged:
            made = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
            is_parameter = isinstance(tensor, nn.Parameter)
            exchanged[id(tensor)] = nn.Parameter(made, tensor.requires_grad) if is_parameter else made
        return exchanged[id(tensor)]

    owners: list[dict[str, Any]] = [
        cast(Any, own) for module in network.modules() for own in (module._parameters, module._buffers)
    ]
    originals = [dict(own) for own in owners]
    for own in owners:
        own.update({name: fake(tensor) for name, tensor in own.items() if tensor is not None})
    try:
        yield list(exchanged.values())
    finally:
        for own, original in zip(owners, originals, strict=True):
            own.update(original)
