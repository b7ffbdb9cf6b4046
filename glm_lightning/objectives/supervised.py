"""Run a network so that only supervised positions reach its head."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from glm_lightning.losses import TokenSums, linear_cross_entropy, projected_cross_entropy
from glm_lightning.models.modes import evaluating
from glm_lightning.types import Batch, UserError

LEAK = 0.1
"""Relative change of logits above which it is no rounding: a sample that is seen changes them by more than a half."""


def token_sums(network: nn.Module, batch: Batch) -> TokenSums:
    """Cross-entropy sums of ``network`` over the supervised positions of ``batch``.

    Rows are padded on the right and attention is causal, so real positions never see padding and no mask is needed.
    Where positions begin again, attention does, too: with no mask and no cache, transformers keeps the samples of a
    packed row apart (`refuse_leaks` makes sure). The loss is taken inside the network's own forward pass, where
    parameters that are sharded over ranks are whole.
    """
    sums: list[TokenSums] = []

    def head_loss(head: nn.Module, project: Callable[[Tensor], Tensor], hidden_states: Tensor) -> Tensor:
        # (B, T, H) to (N, H); a soft prompt stands in front of each row and is longer by its length
        real = hidden_states[:, -batch.input_ids.shape[1] :]
        states = real.flatten(0, 1).index_select(0, batch.where)
        sums.append(_head_sums(head, project, states, batch.targets))
        return sums[0].total

    with _head_replaced(network, head_loss):
        logits = network(input_ids=batch.input_ids, use_cache=False, **_packing(batch)).logits
    if logits is not sums[0].total:
        raise UserError(
            f"model: {type(network).__name__} changes its logits behind the output layer (a soft cap or a scale), "
            "so the loss cannot be taken at the output layer; this architecture is not supported"
        )
    return sums[0]


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


def _head_sums(
    head: nn.Module, project: Callable[[Tensor], Tensor], hidden_states: Tensor, targets: Tensor
) -> TokenSums:
    # An exact type: an adapter around the head, or a quantised one, is more than weight and bias.
    if type(head) is nn.Linear:
        return linear_cross_entropy(hidden_states, head.weight, head.bias, targets)
    vocabulary = cast(int, head.out_features)
    return projected_cross_entropy(project, hidden_states, targets, vocabulary)


@contextlib.contextmanager
def _head_replaced(
    network: nn.Module, function: Callable[[nn.Module, Callable[[Tensor], Tensor], Tensor], Tensor]
) -> Iterator[None]:
    """While the block runs, the output layer answers ``function(head, its own forward, hidden_states)``."""
    head: nn.Module = network.get_output_embeddings()  # type: ignore[operator]
    project, own = head.forward, vars(head).get("forward")
    head.forward = lambda hidden_states: function(head, project, hidden_states)
    try:
        yield
    finally:
        if own is None:
            del head.forward
        else:
            head.forward = own  # somebody else had put one there
