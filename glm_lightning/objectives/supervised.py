"""Run a network so that only supervised positions reach its head."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import cast

from torch import Tensor, nn

from glm_lightning.losses import TokenSums, linear_cross_entropy, projected_cross_entropy
from glm_lightning.types import Batch, UserError


def token_sums(network: nn.Module, batch: Batch) -> TokenSums:
    """Cross-entropy sums of ``network`` over the supervised positions of ``batch``.

    Rows are padded on the right and attention is causal, so real positions never see padding and no mask is needed.
    The loss is taken inside the network's own forward pass, where parameters that are sharded over ranks are whole.
    """
    sums: list[TokenSums] = []

    def head_loss(head: nn.Module, project: Callable[[Tensor], Tensor], hidden_states: Tensor) -> Tensor:
        # (B, T, H) to (N, H)
        states = hidden_states.flatten(0, 1).index_select(0, batch.where)
        sums.append(_head_sums(head, project, states, batch.targets))
        return sums[0].total

    with _head_replaced(network, head_loss):
        logits = network(input_ids=batch.input_ids, use_cache=False).logits
    if logits is not sums[0].total:
        raise UserError(
            f"model: {type(network).__name__} changes its logits behind the output layer (a soft cap or a scale), "
            "so the loss cannot be taken at the output layer; this architecture is not supported"
        )
    return sums[0]


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
