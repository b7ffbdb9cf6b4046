"""What a run holds in memory, part by part."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from glm_lightning.estimate.skeleton import num_bytes
from glm_lightning.estimate.tracing import Shape, trace, trace_answers
from glm_lightning.methods.base import Method

AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
"""What Lightning's mixed precisions compute in."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on one device.

    ``activations`` is what the layers keep for the backward pass when the output layer begins; ``working`` the rest of
    the peak: inside the output layer and the loss, or in the backward pass, or in the optimizer's step, whichever takes
    most. ``head`` is what output layer and loss take while they run, a part of ``working`` if they are what takes most.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    working: int
    head: int
    flops: int  # of one forward and backward pass over the micro-batch
    trained: int  # parameters
    answers: int | None = None  # activations and cache while test rows are answered

    @property
    def training(self) -> int:
        """Peak of a training step."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.working

    @property
    def evaluation(self) -> int:
        """Peak while test rows are answered after the last step, whose gradients are still there."""
        return 0 if self.answers is None else self.weights + self.gradients + self.optimizer + self.answers

    @property
    def peak(self) -> int:
        """Peak of the run."""
        return max(self.training, self.evaluation)


def measure(method: Method, shape: Shape, *, precision: str, accumulates: bool) -> Memory:
    """What training ``method`` takes on a micro-batch of ``shape``, from shapes alone.

    The method is a new one, whose ``ingredients.load`` gives a `skeleton`; it is used up.
    """
    network = _adapted(method)
    trained = sum(parameter.numel() for parameter in method.trained().values())
    weights = num_bytes(network)
    traced = trace(
        network,
        shape,
        loss=method.ingredients.objective.loss,
        make_optimizer=lambda: method.ingredients.optimizer(network.named_parameters()),
        autocast=AUTOCAST.get(precision),
        accumulates=accumulates,
    )
    beyond = max(traced.peak, traced.gradients + traced.step) - traced.gradients
    activations = min(traced.kept, beyond)
    return Memory(
        weights=weights,
        gradients=traced.gradients,
        optimizer=traced.optimizer,
        activations=activations,
        working=beyond - activations,
        head=traced.head,
        flops=traced.flops,
        trained=trained,
    )


def measure_answers(method: Method, *, rows: int, length: int, precision: str) -> int:
    """Bytes beside weights, gradients and optimizer while ``rows`` prompts are answered, ``length`` positions in all.

    As with `measure`, the method is a new one and used up.
    """
    return trace_answers(_adapted(method), rows=rows, length=length, autocast=AUTOCAST.get(precision))


def _adapted(method: Method) -> torch.nn.Module:
    method.configure_model()
    assert method.network is not None
    return method.network
