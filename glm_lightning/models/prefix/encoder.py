"""The trained parameters of a prefix, and the keys and values that they stand for."""

from __future__ import annotations

from typing import NamedTuple, final

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from glm_lightning.models.prefix.geometry import Geometry


class Prefix(NamedTuple):
    """Keys (K, P, D) and values (K, P, E) of every layer: P prefix tokens, K heads of keys and values.

    It travels through the network's forward as a keyword argument. So a layer that is recomputed in the backward pass
    gets the very tensors that it had in the forward pass, and no module holds a state that could be another's. A
    tuple: what hangs steps of its own on a module's tensors (DeepSpeed) finds them in one.
    """

    layers: tuple[tuple[Tensor, Tensor], ...]
    dropout: float = 0.0

    def before(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys (B, K, P + T, D) and values (B, K, P + T, E) with the prefix of ``layer`` in front."""
        pairs = zip(self.layers[layer], (key, value), strict=True)
        front, behind = (torch.cat([self._rows(prefix, real), real], dim=2) for prefix, real in pairs)
        return front, behind

    def _rows(self, prefix: Tensor, real: Tensor) -> Tensor:
        rows = prefix.to(real.dtype).expand(real.shape[0], -1, -1, -1)
        return dropout(rows, self.dropout) if self.dropout else rows  # each row draws its own


@final
class PrefixEncoder(nn.Module):
    """The prefix encoder of P-tuning v2 (Liu et al. 2021, arXiv:2110.07602), with its official tensor names.

    Plain, ``embedding`` holds keys and values themselves, laid out [P, layer, key or value, head, head dim]; with a
    projection they are ``Linear(tanh(Linear(embedding)))``. Keys are not rotated.

    Args:
        geometry: the sizes of the network's keys and values.
        length: P, the number of prefix tokens.
        embedding_dim: numbers that the projection maps a token from; None: no projection.
        projection_hidden: inner width of the projection.
        dropout: share of the prefix's numbers dropped while training.
        dtype: of the parameters; half precision loses what a small learning rate adds.
        device: of the parameters.
    """

    def __init__(
        self,
        geometry: Geometry,
        *,
        length: int,
        embedding_dim: int | None = None,
        projection_hidden: int = 0,
        dropout: float = 0.1,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.geometry = geometry
        self.dropout = dropout
        self.enabled = True
        place = {"dtype": dtype, "device": device}
        self.embedding = nn.Embedding(length, embedding_dim or geometry.width, **place)  # type: ignore[arg-type]
        self.trans: nn.Module = nn.Identity()
        if embedding_dim is not None:
            self.trans = nn.Sequential(
                nn.Linear(embedding_dim, projection_hidden, **place),  # type: ignore[arg-type]
                nn.Tanh(),
                nn.Linear(projection_hidden, geometry.width, **place),  # type: ignore[arg-type]
            )
        self._kept: Prefix | None = None

    @property
    def length(self) -> int:
        """The number of prefix tokens."""
        return self.embedding.num_embeddings

    @property
    def projected(self) -> bool:
        """Whether keys and values come out of a projection."""
        return isinstance(self.trans, nn.Sequential)

    def values(self) -> Tensor:
        """Keys and values (P, layers * (keys + values)), differentiable, in the parameters' own precision."""
        weight = self.embedding.weight
        with torch.autocast(weight.device.type, enabled=False):
            projected: Tensor = self.trans(weight)
        return projected

    def forward(self, *, continued: bool = False) -> Prefix:
        """The prefix of all layers.

        ``continued`` says that this is a later step of a generation: the weights cannot have changed since its first
        step, so a projection is not computed again.
        """
        reusable = self.projected and not self.training and not torch.is_grad_enabled()
        if reusable and continued and self._kept is not None:
            return self._kept
        prefix = Prefix(self._layers(), self.dropout if self.training else 0.0)
        self._kept = prefix if reusable else None
        return prefix

    def _layers(self) -> tuple[tuple[Tensor, Tensor], ...]:
        sizes = self.geometry
        numbers = self.values().view(self.length, sizes.num_layers, sizes.layer_width)
        keys, values = numbers.split([sizes.num_heads * sizes.key_dim, sizes.num_heads * sizes.value_dim], dim=-1)
        # (P, L, K * D) to L times (K, P, D); one unbind, for a slice a layer would make a full gradient a layer
        layers = (part.unflatten(-1, (sizes.num_heads, -1)).permute(1, 2, 0, 3).unbind() for part in (keys, values))
        return tuple(zip(*layers, strict=True))

    @torch.no_grad()
    def set_layers(self, layers: list[tuple[Tensor, Tensor]]) -> None:
        """Make these keys (K, P, D) and values (K, P, E) the prefix; not with a projection."""
        assert not self.projected
        # (K, P, D) to (P, K * D)
        parts = [part.transpose(0, 1).flatten(1) for layer in layers for part in layer]
        self.embedding.weight.copy_(torch.cat(parts, dim=1))
