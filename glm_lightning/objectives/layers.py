"""Hidden states of two networks, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast, final

import torch
from torch import Tensor, nn

from glm_lightning.losses.chunks import accumulation_dtype
from glm_lightning.objectives.supervised import supervised_states
from glm_lightning.types import Batch


@final
class Projections(nn.Module):
    """A learned linear map for each of the student's layers, to the width of the teacher's that lies as deep.

    Layer i of n goes with layer i N / n of the teacher's N, rounded (Jiao et al. 2020, arXiv:1909.10351, section 4.1).
    """

    def __init__(self, student: Any, teacher: Any) -> None:
        """Args:
        student: its configuration in transformers' form.
        teacher: likewise.
        """
        super().__init__()
        student, teacher = student.get_text_config(), teacher.get_text_config()
        layers, deepest = student.num_hidden_layers, teacher.num_hidden_layers
        self.partners = [round(layer * deepest / layers) for layer in range(1, layers + 1)]
        maps = [nn.Linear(student.hidden_size, teacher.hidden_size, bias=False) for _ in self.partners]
        for each in maps:
            nn.init.orthogonal_(each.weight) if student.hidden_size != teacher.hidden_size else nn.init.eye_(
                each.weight
            )
        self.maps = nn.ModuleList(maps)

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor], batch: Batch) -> Tensor:
        """Sum over the supervised positions of |map(student) - teacher|^2 / |teacher|^2, a mean over the layers.

        Both are hidden states (B, T, H) of the embeddings and of every layer.
        """
        distances = []
        for layer, (each, partner) in enumerate(zip(self.maps, self.partners, strict=True), start=1):
            target = supervised_states(teacher[partner], batch)
            target = target.to(accumulation_dtype(target.dtype))
            mapped = each(supervised_states(student[layer], batch).to(cast(Tensor, each.weight).dtype))
            distances.append(((mapped - target).square().sum(-1) / target.square().sum(-1)).sum())
        return torch.stack(distances).mean()
