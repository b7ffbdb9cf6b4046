"""The face of an objective."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from glm_lightning.types import Batch, Conversation, Item, Loss


class Ahead(Protocol):
    """Computes something of all samples before the first step, or finds it on disk."""

    def __call__(self, compute: Callable[[Batch], dict[str, Tensor]], *, key: str, each: str) -> None:
        """From now on ``Batch.given`` has what ``compute`` gives, by name.

        Args:
            compute: tensors (n, ...) of a batch, n being its supervised tokens or its samples.
            key: names everything but the samples that decides the values.
            each: ``token`` or ``sample``, what n counts.
        """
        ...


@dataclass(frozen=True)
class Stage:
    """What an objective may look at before the first step: the network on its device, and the network as its base.

    Args:
        network: what is trained.
        base: while it is entered, the network answers as its base.
        adapter: whether that costs nothing: the base's own weights stay as they are.
        base_key: names the base and how it is held.
        precision: what networks compute in, by Lightning's name.
        device: where batches come to.
        ahead: computes something of all samples.
    """

    network: nn.Module
    base: Callable[[], AbstractContextManager[None]]
    adapter: bool
    base_key: str
    precision: str
    device: torch.device
    ahead: Ahead


@dataclass(frozen=True)
class Setup:
    """What of the rest of a run an objective may not go with.

    Args:
        adapter: whether the base's own weights stay as they are.
        packing: whether several samples are told to share a row.
        compiled: whether layers are compiled.
        sharded: whether ranks hold parts of a weight.
    """

    adapter: bool
    packing: bool = False
    compiled: bool = False
    sharded: bool = False


class Objective(ABC):
    """Turns a micro-batch into sums over what is learned of it.

    Sums, not means: only the caller knows how many tokens, or pairs, the whole optimizer step has.
    """

    learns: ClassVar[tuple[type[Item], ...]] = (Conversation,)
    """What its rows may hold."""

    metrics: ClassVar[tuple[str, ...]] = ("perplexity", "token_accuracy")
    """What validation measures beside the loss."""

    packs: bool = True
    """Whether several samples may share a row."""

    seed: int = 0
    """Of what it draws in this optimizer step: the same on every rank and for every micro-batch of the step."""

    @abstractmethod
    def loss(self, network: nn.Module, batch: Batch) -> Loss:
        """The sums of one micro-batch; ``Loss.total`` is what is minimised."""

    def measured(self, means: Mapping[str, float]) -> dict[str, float]:
        """``loss`` and `metrics`, from the means of ``Loss.total`` (as ``loss``) and ``Loss.sums`` over all samples."""
        return dict(means)

    def of_sums(self, sums: Tensor, names: Sequence[str]) -> dict[str, float]:
        """`measured` of the sum (2 + names,) of `Loss.flat` over a whole data set; ``names`` are those of the sums."""
        count, *others = sums.tolist()
        return self.measured(dict(zip(("loss", *names), (each / count for each in others), strict=True)))

    def clashes(self, setup: Setup) -> Iterator[str]:
        """What of its knobs does not go with the rest of the run."""
        yield from ()

    def extra(self, network: nn.Module) -> nn.Module | None:
        """Parameters of its own that are trained with those of ``network``; None where there are none."""
        return None

    def begin(self, stage: Stage) -> None:
        """Load and compute what is needed beside the network; called once, before the first step, without gradients."""
        return


def perplexity(loss: float) -> float:
    """Exponential of a cross-entropy in nats, which is still a number where the loss is beyond all reason."""
    return math.exp(min(loss, 700.0))
