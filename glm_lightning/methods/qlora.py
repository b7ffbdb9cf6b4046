"""QLoRA: a low-rank update beside weights held in 4 or 8 bits."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal, final

from torch import nn
from transformers import PreTrainedModel

from glm_lightning.methods import adapters
from glm_lightning.methods.base import SHARDING, Method
from glm_lightning.methods.ingredients import Ingredients
from glm_lightning.methods.low_rank import LowRank, faster
from glm_lightning.types import UserError


@final
class QLoRA(Method):
    """LoRA over a base in nf4, fp4 or int8 (Dettmers et al. 2023, arXiv:2305.14314), by PEFT and bitsandbytes.

    The update is held and learned in float32; the quantised layers compute in ``model.compute_dtype``.

    Args:
        ingredients: what every method is given; ``quantize`` is how the base is held.
        rank: inner width of the update.
        alpha: scale of the update; alpha / rank multiplies it.
        dropout: share of the update's inputs dropped while training.
        targets: ``all-linear`` (every linear layer but the head), ``attention``, ``qkv``, names of layers as they end,
            or a regular expression of whole names.
        rslora: divide by the root of the rank instead (Kalajdzievski 2023, arXiv:2312.03732).
        dora: learn the magnitude apart from the direction (Liu et al. 2024, arXiv:2402.09353).
        init: how A and B begin; both ways start at the base exactly.
        lr_ratio: learning rate of B over that of A (LoRA+, Hayou et al. 2024, arXiv:2402.12354).
        rank_pattern: other ranks, by name or pattern of the layer.
        alpha_pattern: other alphas, by name or pattern of the layer.
        extra_modules: modules that are trained in full and saved with the adapter, by name.
    """

    trains_base = False
    artefact = "adapter"
    refused_strategies = dict.fromkeys(
        SHARDING, "bitsandbytes' layers are not sharded; use trainer=ddp, or method=lora with quantize=null"
    )

    def __init__(
        self,
        ingredients: Ingredients,
        *,
        rank: int = 8,
        alpha: float = 16,
        dropout: float = 0.0,
        targets: str | list[str] = "all-linear",
        rslora: bool = False,
        dora: bool = False,
        init: Literal["default", "gaussian"] = "default",
        lr_ratio: float = 1.0,
        rank_pattern: Mapping[str, int] | None = None,
        alpha_pattern: Mapping[str, float] | None = None,
        extra_modules: list[str] | None = None,
    ) -> None:
        super().__init__(ingredients, rate=faster(lr_ratio))
        self.update = LowRank(
            rank=rank,
            alpha=alpha,
            dropout=dropout,
            targets=targets,
            experts=False,
            rslora=rslora,
            dora=dora,
            init=init,
            rank_pattern=rank_pattern or {},
            alpha_pattern=alpha_pattern or {},
            extra_modules=extra_modules or [],
        )

    def check(self, skeleton: PreTrainedModel) -> None:
        """The base must be quantised, and every name lead to a layer."""
        quantize = self.ingredients.quantize
        problems = list(self.update.problems(skeleton, quantize))
        if quantize is None:
            problems.append("quantize is null: method=qlora needs nf4, fp4 or int8; without it use method=lora")
        if problems:
            raise UserError(problems)

    def adapt(self, network: PreTrainedModel) -> nn.Module:
        """Freeze the base and put updates beside the targets."""
        adapted, notices = self.update.adapt(network)
        self.notices += notices
        return adapted

    def without_adaptation(self) -> AbstractContextManager[None]:
        """The update switched off: the quantised base."""
        return adapters.switched_off(self.network)

    def save(self, folder: Path) -> None:
        """Write PEFT's adapter folder; stock ``PeftModel.from_pretrained`` reads it onto the base, quantised or not."""
        adapters.write(self.network, folder)
