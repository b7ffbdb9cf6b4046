"""What objectives share that learn tokens by their likelihood alone."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from glm_lightning.losses.divergence import divergence
from glm_lightning.models.modes import evaluating
from glm_lightning.objectives.base import Objective, Setup, Stage, perplexity
from glm_lightning.objectives.supervised import Head, at_supervised, token_sums
from glm_lightning.types import Batch, Loss, UserError


class Likelihood(Objective):
    """Negative log-likelihood of the labelled tokens, in nats; and, while training, how far it leads from the base.

    A token's loss is -log q(label) + w KL(p || q), with q what the network thinks of the next token, p what it did
    before this run (`Stage.base`), and w ``kl_to_base`` (learning without forgetting: Li and Hoiem 2016,
    arXiv:1606.09282).

    Args:
        kl_to_base: w; 0 is without, and costs nothing.
    """

    def __init__(self, *, kl_to_base: float = 0.0) -> None:
        if kl_to_base < 0:
            raise UserError(f"objective.kl_to_base is {kl_to_base}: must be 0 or more")
        self.kl_to_base = kl_to_base
        self._base: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext

    def clashes(self, setup: Setup) -> Iterator[str]:
        """A base that is trained cannot be asked in every step."""
        if self.kl_to_base and not setup.adapter:
            yield (
                f"objective.kl_to_base is {self.kl_to_base}: this method trains weights of the base itself, which "
                "would have to be read anew in every step; use method=lora, or objective=distill"
            )
        if self.kl_to_base and setup.sharded:
            yield f"objective.kl_to_base is {self.kl_to_base}: needs whole weights on every rank; use trainer=ddp"

    def begin(self, stage: Stage) -> None:
        """Know how the network answers as its base."""
        self._base = stage.base

    def loss(self, network: nn.Module, batch: Batch) -> Loss:
        """Sums over the micro-batch's supervised tokens."""
        if self.kl_to_base and network.training:
            return self._near_base(network, batch)
        sums = token_sums(network, batch)
        return Loss(total=sums.total, count=sums.num_tokens, sums={"token_accuracy": sums.num_correct})

    def _near_base(self, network: nn.Module, batch: Batch) -> Loss:
        compare = functools.partial(self._sums, batch, self._of_base(network, batch))
        results: list[Tensor] = []

        def minimised(head: Head, hidden_states: Tensor) -> Tensor:
            results.append(head.sums(hidden_states, compare))
            return results[0][0]

        total = at_supervised(network, batch, minimised).logits
        _, kl, correct = results[0]
        count = batch.lengths.new_full((), batch.targets.numel())
        return Loss(total=total, count=count, sums={"token_accuracy": correct, "kl_to_base": kl})

    def _of_base(self, network: nn.Module, batch: Batch) -> Callable[[slice], Tensor]:
        """What gives the base's logits (n, V) at some of the supervised positions.

        A head that is no plain matrix may be trained, and is the base's now only: then all logits are kept.
        """
        found: list[Callable[[slice], Tensor]] = []

        def keep(head: Head, hidden_states: Tensor) -> Tensor:
            if head.is_plain:
                found.append(lambda rows: head.project(hidden_states[rows]))
            else:
                logits = head.project(hidden_states)
                found.append(lambda rows: logits[rows])
            return hidden_states

        with torch.no_grad(), evaluating(network), self._base():
            at_supervised(network, batch, keep)
        return found[0]

    def _sums(self, batch: Batch, of_base: Callable[[slice], Tensor], logits: Tensor, rows: slice) -> Tensor:
        """What is minimised, divergence and right predictions of some of the positions."""
        with torch.no_grad():
            base = of_base(rows).to(logits.dtype).log_softmax(-1)
        targets = batch.targets[rows]
        kl = divergence(base, logits.log_softmax(-1), kind="forward_kl").sum()
        likelihood = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
        return torch.stack([likelihood + self.kl_to_base * kl, kl, (logits.argmax(-1) == targets).sum().to(kl)])

    def measured(self, means: Mapping[str, float]) -> dict[str, float]:
        """With the perplexity; see `Objective.measured`."""
        return {"loss": means["loss"], "perplexity": perplexity(means["loss"]), **means}
