"""Run a network so that only supervised positions reach its head."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from glm_lightning.losses import TokenSums, linear_cross_entropy, projected_cross_entropy
from glm_lightning.losses.chunks import Sums, linear_sums, projected_log_probs, projected_sums
from glm_lightning.models.modes import evaluating
from glm_lightning.types import Batch, UserError

LEAK = 0.1
"""Relative change of logits above which it is no rounding: a sample that is seen changes them by more than a half."""


@dataclass(frozen=True, slots=True)
class Head:
    """The output layer of a network: from hidden states (n, H) to logits (n, V)."""

    module: nn.Module
    project: Callable[[Tensor], Tensor]

    @property
    def vocabulary(self) -> int:
        """Size of the vocabulary."""
        return cast(int, self.module.out_features)

    def sums(self, hidden_states: Tensor, function: Sums) -> Tensor:
        """The sums of ``function`` over the logits of ``hidden_states`` (N, H); see `chunks.linear_sums`."""
        if (plain := self._plain) is not None:
            return linear_sums(hidden_states, plain.weight, plain.bias, function)
        return projected_sums(self.project, hidden_states, function, self.vocabulary)

    def cross_entropy(self, hidden_states: Tensor, targets: Tensor) -> TokenSums:
        """Cross-entropy sums of ``hidden_states`` (N, H) against ``targets`` (N,)."""
        if (plain := self._plain) is not None:
            return linear_cross_entropy(hidden_states, plain.weight, plain.bias, targets)
        return projected_cross_entropy(self.project, hidden_states, targets, self.vocabulary)

    def log_probs(self, hidden_states: Tensor, targets: Tensor) -> Tensor:
        """Log-probability (N,) of each target (N,) behind ``hidden_states`` (N, H)."""
        return projected_log_probs(self.project, hidden_states, targets, self.vocabulary)

    @property
    def is_plain(self) -> bool:
        """Whether it is a frozen matrix, with no adapter around it."""
        return self._plain is not None and not self._plain.weight.requires_grad

    @property
    def _plain(self) -> nn.Linear | None:
        # An exact type: an adapter around the head, or a quantised one, is more than weight and bias.
        return self.module if type(self.module) is nn.Linear else None


def at_supervised(network: nn.Module, batch: Batch, function: Callable[[Head, Tensor], Tensor], **options: Any) -> Any:
    """Run ``network`` on ``batch``; ``function`` of its head and of the hidden states (N, H) at supervised positions
    stands for the logits in what it returns.

    Rows are padded on the right and attention is causal, so real positions never see padding and no mask is needed.
    Where positions begin again, attention does, too: with no mask and no cache, transformers keeps the samples of a
    packed row apart (`refuse_leaks` makes sure). ``function`` runs inside the network's own forward pass, where
    parameters that are sharded over ranks are whole.
    """
    results: list[Tensor] = []

    def in_place_of_logits(head: Head, hidden_states: Tensor) -> Tensor:
        results.append(function(head, supervised_states(hidden_states, batch)))
        return results[0]

    with _head_replaced(network, in_place_of_logits):
        outputs = network(input_ids=batch.input_ids, use_cache=False, **_packing(batch), **options)
    if not _is_same(outputs.logits, results[0]):
        raise UserError(
            f"model: {type(network).__name__} changes its logits behind the output layer (a soft cap or a scale), "
            "so the loss cannot be taken at the output layer; this architecture is not supported"
        )
    return outputs


def _is_same(one: Tensor, other: Tensor) -> bool:
    """Whether they share their numbers: an engine may have hung a step of its own behind the output layer."""
    return one is other or one.data_ptr() == other.data_ptr()


def supervised_states(hidden_states: Tensor, batch: Batch) -> Tensor:
    """Of hidden states (B, T, H) those at supervised positions (N, H); soft tokens in front of a row are left out."""
    real = hidden_states[:, -batch.input_ids.shape[1] :]
    return real.flatten(0, 1).index_select(0, batch.where)


def token_sums(network: nn.Module, batch: Batch) -> TokenSums:
    """Cross-entropy sums of ``network`` over the supervised positions of ``batch``."""
    sums: list[TokenSums] = []

    def loss(head: Head, hidden_states: Tensor) -> Tensor:
        sums.append(head.cross_entropy(hidden_states, batch.targets))
        return sums[0].total

    outputs = at_supervised(network, batch, loss)
    return sums[0]._replace(total=outputs.logits)


def sequence_log_probs(network: nn.Module, batch: Batch) -> Tensor:
    """Log-probability (2P,) of what is supervised in each sequence of P pairs, chosen and rejected in turn."""
    assert batch.sequences is not None
    sequences = batch.sequences

    def log_probs(head: Head, hidden_states: Tensor) -> Tensor:
        values = head.log_probs(hidden_states, batch.targets)
        return values.new_zeros(2 * batch.num_samples).index_add(0, sequences, values)

    return cast(Tensor, at_supervised(network, batch, log_probs).logits)


def _packing(batch: Batch) -> dict[str, Any]:
    """What tells samples of a row apart: by positions, and for attention that takes no mask by where they begin."""
    if batch.position_ids is None:
        return {}
    starts, longest = batch.cu_seqlens, batch.max_seqlen
    if starts is None:
        return {"position_ids": batch.position_ids}
    lengths = {"cu_seq_lens_q": starts, "cu_seq_lens_k": starts, "max_length_q": longest, "max_length_k": longest}
    return {"position_ids": batch.position_ids, **lengths}


def refuse_leaks(network: nn.Module, batch: Batch) -> None:
    """Raise `UserError` if samples in one row of ``network`` see each other, tried on a piece of a packed ``batch``.

    Not every architecture looks at positions when it makes its mask, and none says so.
    """
    found = _second_sample(batch)
    if found is None:
        return
    ids, positions, start = found
    packing = _packing(Batch.of(ids, ids, ids[:, 0], step_tokens=1, rows=[], position_ids=positions))
    with evaluating(network), torch.no_grad():
        packed = network(input_ids=ids, use_cache=False, **packing).logits[:, start:]
        alone = network(input_ids=ids[:, start:], position_ids=positions[:, start:], use_cache=False).logits
    difference = ((packed - alone).float().norm() / alone.float().norm()).item()
    if difference > LEAK:
        raise UserError(
            f"data.packing is true: {type(network).__name__} mixes the samples of a row (the logits of the second one "
            f"change by {difference:.0%} with what is before it); set data.packing=false"
        )


def _second_sample(batch: Batch) -> tuple[Tensor, Tensor, int] | None:
    """Ids and positions (1, T) of the first two samples that share a row, and where the second begins."""
    if batch.position_ids is None:
        return None
    for ids, positions in zip(batch.input_ids, batch.position_ids, strict=True):
        starts = [*(positions == 0).nonzero()[:, 0].tolist(), len(positions)]
        if len(starts) > 2:
            return ids[None, : starts[2]], positions[None, : starts[2]], starts[1]
    return None


@contextlib.contextmanager
def _head_replaced(network: nn.Module, function: Callable[[Head, Tensor], Tensor]) -> Iterator[None]:
    """While the block runs, the output layer answers ``function(head, hidden_states)``."""
    head: nn.Module = network.get_output_embeddings()  # type: ignore[operator]
    project, own = head.forward, vars(head).get("forward")
    head.forward = lambda hidden_states: function(Head(head, project), hidden_states)
    try:
        yield
    finally:
        if own is None:
            del head.forward
        else:
            head.forward = own  # somebody else had put one there
