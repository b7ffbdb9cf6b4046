"""Where a NaN or an infinity came from: the micro-batches of a step run again with every layer watched."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from glm_lightning.strategies.parts import is_engines, own_part
from glm_lightning.types import Batch, Origin

OnNonFinite = Literal["stop", "skip"]
"""What happens at a step whose loss or gradient is not finite: the run stops, or goes on without the step."""

SHOWN = 8
"""Samples of a micro-batch that are named."""


@final
@dataclass
class Step:
    """The micro-batches of an optimizer step that this rank has run so far, each with the seed of its randomness."""

    micro_batches: list[tuple[Batch, int]] = field(default_factory=list)

    def begin(self, batch: Batch, seed: int) -> None:
        """Seed torch and keep the micro-batch; a resumed run and `findings` do the same."""
        torch.manual_seed(seed)
        self.micro_batches.append((batch, seed))

    def findings(
        self,
        network: nn.Module,
        loss: Callable[[Batch], Tensor],
        origin: Callable[[int], Origin],
        *,
        context: Callable[[], AbstractContextManager[Any]],
    ) -> list[str]:
        """For each micro-batch that gives it again: the first layer that is not finite, and the samples it has.

        Every micro-batch is run, whatever the others gave: ranks that share a network's parts must stay in step.

        Args:
            network: what is trained; gradients that it has are lost.
            loss: runs it forward.
            origin: file and line of a sample of the training set.
            context: the precision that training runs in.
        """
        found = []
        for number, (batch, seed) in enumerate(self.micro_batches, start=1):
            torch.manual_seed(seed)
            with context():
                finding = _first(network, functools.partial(loss, batch), num_rows=len(batch.input_ids))
            if finding is not None:
                samples = _named([origin(row) for row in finding.samples(batch) if row >= 0])
                found.append(f"micro-batch {number} of {len(self.micro_batches)}: {finding.what}; {samples}")
        return found


@dataclass(frozen=True)
class _Finding:
    what: str
    rows: tuple[int, ...] | None = None  # of the micro-batch, if they are known

    def samples(self, batch: Batch) -> list[int]:
        is_single = len(batch.rows) == len(batch.input_ids)  # a packed row has several samples
        return batch.rows if self.rows is None or not is_single else [batch.rows[row] for row in self.rows]


def _named(origins: list[Origin]) -> str:
    shown = ", ".join(map(str, origins[:SHOWN]))
    more = f" and {len(origins) - SHOWN} more" if len(origins) > SHOWN else ""
    return f"samples {shown}{more}"


def _first(network: nn.Module, loss: Callable[[], Tensor], *, num_rows: int) -> _Finding | None:
    """The first layer whose output, or else whose gradient, is not finite; parameters have no gradient behind it."""
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    watch = _Watch(network, num_rows)
    if any(is_engines(parameter) for parameter in trained.values()):
        watch.only_layers()
    try:
        # What is compiled calls no hooks; a frozen layer has no gradient to watch, which torch warns about.
        with torch.compiler.set_stance("force_eager"), warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            value = loss()
            if watch.found is None and not _is_finite(value):
                watch.found = _Finding("the loss behind the last layer is not finite")
            # Also where it is found already: other ranks may need this one's parts of the network.
            value.backward(inputs=watch.starts or None)
            # What is sharded has been summed over the ranks by now: that is not this rank's finding.
            own = {name: p for name, p in trained.items() if own_part(p) is p}
            bad = [name for name, p in own.items() if not _all_finite([p.grad])]
            watch.found = watch.found or (_Finding(f"the gradient of {bad[0]} is not finite") if bad else None)
        return watch.found
    except RuntimeError as error:  # what was found matters more than where
        return watch.found or _Finding(f"the layer could not be looked for ({error})")
    finally:
        watch.end()
        network.zero_grad(set_to_none=True)


@final
class _Watch:
    """Hooks on all layers; those of the layers inside another fire before its own, so the innermost is found."""

    def __init__(self, network: nn.Module, num_rows: int) -> None:
        self.found: _Finding | None = None
        self.starts: list[Tensor] = []  # what the backward pass goes to, if not to all parameters
        self._network = network
        self._num_rows = num_rows
        self._handles = []
        # A backward hook would exchange the output layer's output, which is the loss already.
        head: nn.Module = network.get_output_embeddings()  # type: ignore[operator]
        for name, module in network.named_modules():
            self._handles.append(module.register_forward_hook(self._forward(name)))
            if module is not head and next(module.children(), None) is None:
                self._handles.append(module.register_full_backward_hook(self._backward(name)))

    def only_layers(self) -> None:
        """Let the backward pass end at the embeddings, and no parameter get a gradient: an engine would count it in."""
        embedding: nn.Module = self._network.get_input_embeddings()  # type: ignore[operator]
        self._handles.append(embedding.register_forward_hook(self._start))

    def _start(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        self.starts.append(output.detach().requires_grad_())
        return self.starts[-1]

    def end(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _forward(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            bad = None if self.found else next((t for t in _tensors(output) if not _is_finite(t)), None)
            if bad is not None:
                broken = [key for key, parameter in module.named_parameters() if not _is_finite(parameter)]
                weights = f", whose own {broken[0]} is not finite" if broken else ""
                what = f"the output of {name or 'the network'} ({type(module).__name__}) is not finite{weights}"
                self.found = _Finding(what, self._rows(bad))

        return hook

    def _backward(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, grad_inputs: Any, grad_outputs: Any) -> None:
            bad = None if self.found else next((g for g in (*grad_outputs, *grad_inputs) if not _all_finite([g])), None)
            if bad is not None:
                deed = "hands back" if _all_finite(grad_outputs) else "is given by what follows it"
                what = f"the gradient that {name} ({type(module).__name__}) {deed} is not finite"
                self.found = _Finding(what, self._rows(bad))

        return hook

    def _rows(self, tensor: Tensor) -> tuple[int, ...] | None:
        """Rows (B, ...) that are not finite; None where the first dimension is not the rows."""
        if tensor.ndim < 2 or len(tensor) != self._num_rows:
            return None
        return tuple((~torch.isfinite(tensor)).flatten(1).any(1).nonzero()[:, 0].tolist())


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


def _all_finite(tensors: Iterable[Tensor | None]) -> bool:
    return all(tensor is None or _is_finite(tensor) for tensor in tensors)


def _is_finite(tensor: Tensor) -> bool:
    """Asked of this rank's part, without the others."""
    return not tensor.is_floating_point() or bool(torch.isfinite(own_part(tensor)).all())
