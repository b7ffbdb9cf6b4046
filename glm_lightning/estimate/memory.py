"""What a run holds in memory, part by part and moment by moment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import nn

from glm_lightning.estimate.depth import deep
from glm_lightning.estimate.skeleton import num_bytes
from glm_lightning.estimate.tracing import Answers, Kernels, Shape, Stage, Trace, trace
from glm_lightning.methods.base import Method

AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
"""What Lightning's mixed precisions compute in."""

_CAST = {"64-true": torch.float64, "bf16-true": torch.bfloat16, "16-true": torch.float16}
"""What its true precisions make of everything; ``32-true`` leaves everything as it is."""

_MOMENTS: Mapping[str, Stage] = {
    "forward pass": "forward",
    "output layer and loss": "head",
    "optimizer's step": "step",
    "validation": "validation",
    "reading test prompts": "prompts",
    "answering test rows": "answers",
}


@final
@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on one device.

    ``activations`` are what the layers keep for the backward pass, ``head`` what the output layer and the loss take
    beyond them. Not all parts are there at the same time: ``moments`` says how much is alive when, all parts included.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    head: int
    moments: Mapping[str, int]
    trained: int  # parameters
    flops: int  # of one forward and backward pass over the micro-batch
    units: tuple[int, ...]  # the weights that a sharded run puts together at once, as it puts them together
    beside: int = 0  # what is there all the time beside the network

    def with_beside(self, num_bytes: int) -> Memory:
        """The same where ``num_bytes`` more are there all the time."""
        moments = {name: most + num_bytes for name, most in self.moments.items()}
        return replace(self, beside=self.beside + num_bytes, moments=moments)

    @property
    def peak(self) -> int:
        """The most that is alive at any moment."""
        return max(self.moments.values())

    @property
    def when(self) -> str:
        """The moment of the peak."""
        return max(self.moments, key=self.moments.__getitem__)

    @property
    def held(self) -> int:
        """What is there in every step, however small a micro-batch is."""
        return self.weights + self.gradients + self.optimizer + self.beside


@final
class Network:
    """The network of a run without its weights: what it takes can be asked again and again.

    Args:
        method: a new one, whose ``ingredients.load`` gives a `skeleton`.
        precision: Lightning's name.
        kernels: whose are followed.
        sharded: whether weights are put together from parts of other devices in the type that is computed in.
    """

    def __init__(self, method: Method, *, precision: str, kernels: Kernels = "cpu", sharded: bool = False) -> None:
        method.configure_model()
        if precision in _CAST:
            method.to(_CAST[precision])
        self._method, self._autocast, self._kernels, self._sharded = method, AUTOCAST.get(precision), kernels, sharded
        self.weights = num_bytes(self._network) + method.num_bytes_kept
        self.trained = sum(parameter.numel() for parameter in method.trained().values())
        self._units = tuple(self._whole())

    @property
    def _network(self) -> nn.Module:
        assert self._method.network is not None
        return self._method.network

    def trace(self, shape: Shape, **parts: Any) -> Trace:
        """What a micro-batch of ``shape`` takes; ``parts`` as `tracing.trace` names them."""
        network, ingredients = self._network, self._method.ingredients
        return deep(
            network,
            lambda: trace(
                network,
                shape,
                loss=ingredients.objective.loss,
                make_optimizer=lambda: ingredients.optimizer(network.named_parameters()),
                autocast=self._autocast,
                kernels=self._kernels,
                sharded=self._sharded,
                **parts,
            ),
        )

    def memory(
        self,
        shape: Shape,
        *,
        accumulates: bool,
        validation: Shape | None = None,
        answers: Answers | None = None,
    ) -> Memory:
        """What a run takes; arguments as those of `tracing.trace`."""
        return self.of(self.trace(shape, accumulates=accumulates, validation=validation, answers=answers))

    def of(self, traced: Trace) -> Memory:
        """What a run takes whose step was traced."""
        peaks = traced.peaks
        backward = max(most for stage, most in peaks.items() if isinstance(stage, int))
        alive = {name: peaks[stage] for name, stage in _MOMENTS.items() if stage in peaks} | {"backward pass": backward}
        return Memory(
            weights=self.weights,
            gradients=traced.gradients,
            optimizer=traced.optimizer,
            activations=traced.kept,
            head=peaks["head"] - traced.kept - traced.gradients - traced.optimizer,
            moments={name: self.weights + most for name, most in alive.items()},
            trained=self.trained,
            flops=traced.flops,
            units=self._units,
        )

    def _whole(self) -> Iterator[int]:
        """Bytes of each of the method's units, what an earlier one holds left out."""

        def computed(parameter: nn.Parameter) -> torch.dtype:
            return (self._sharded and self._autocast) or parameter.dtype

        held: set[nn.Parameter] = set()
        for unit in self._method.units():
            own = set(unit.parameters()) - held
            held |= own
            yield sum(each.numel() * computed(each).itemsize for each in own)
