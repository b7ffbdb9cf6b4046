"""LoRA: a trained low-rank update beside frozen weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import final

from lightning.pytorch import Callback
from torch import nn
from transformers import PreTrainedModel

from glm_lightning.methods import adapters
from glm_lightning.methods.base import SHARDING, Method
from glm_lightning.methods.ingredients import Ingredients
from glm_lightning.methods.low_rank import LowRank, faster
from glm_lightning.methods.splitting import Split
from glm_lightning.types import UserError


@final
class LoRA(Method):
    """W x + (alpha / rank) B A x with only A and B trained (Hu et al. 2021, arXiv:2106.09685), by PEFT.

    Args:
        ingredients: what every method is given.
        rank: inner width of the update.
        alpha: scale of the update; alpha / rank multiplies it.
        dropout: share of the update's inputs dropped while training.
        targets: ``all-linear`` (every linear layer but the head), ``attention``, ``qkv``, names of layers as they end,
            or a regular expression of whole names.
        experts: also adapt the fused experts of a mixture, an update for each expert.
        rslora: divide by the root of the rank instead (Kalajdzievski 2023, arXiv:2312.03732).
        dora: learn the magnitude apart from the direction (Liu et al. 2024, arXiv:2402.09353).
        init: how A and B begin: `low_rank.STARTS`.
        lr_ratio: learning rate of B over that of A (LoRA+, Hayou et al. 2024, arXiv:2402.12354).
        rank_pattern: other ranks, by name or pattern of the layer.
        alpha_pattern: other alphas, by name or pattern of the layer.
        extra_modules: modules that are trained in full and saved with the adapter, by name.
    """

    trains_base = False
    artefact = "adapter"

    def __init__(
        self,
        ingredients: Ingredients,
        *,
        rank: int = 8,
        alpha: float = 16,
        dropout: float = 0.0,
        targets: str | list[str] = "all-linear",
        experts: bool = False,
        rslora: bool = False,
        dora: bool = False,
        init: str = "default",
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
            experts=experts,
            rslora=rslora,
            dora=dora,
            init=init,
            rank_pattern=rank_pattern or {},
            alpha_pattern=alpha_pattern or {},
            extra_modules=extra_modules or [],
        )
        self._split = Split(init=init, load=ingredients.load) if self.update.splits else None

    def check(self, skeleton: PreTrainedModel) -> None:
        """Every name must lead to a layer."""
        if problems := list(self.update.problems(skeleton, self.ingredients.quantize)):
            raise UserError(problems)

    def wrong_with(self, strategy: str) -> Iterator[str]:
        """What begins as a part of the base needs the base whole; what adapts experts rewrites a parameter."""
        if strategy not in SHARDING:
            return
        if self._split is not None:
            yield f"method.init is {self.update.init!r}: takes whole weights apart; use init=default, or trainer=ddp"
        if self.update.experts:
            yield "method.experts is true: PEFT adapts experts in whole weights; set experts=false, or trainer=ddp"

    def adapt(self, network: PreTrainedModel) -> nn.Module:
        """Freeze the base and put updates beside the targets."""
        adapted, notices = self.update.adapt(network)
        self.notices += notices
        if self._split is not None:
            self._split.begin(adapted)
        return adapted

    def configure_callbacks(self) -> list[Callback]:
        """What keeps the start of an update that is a part of the base."""
        return [] if self._split is None else [self._split]

    def without_adaptation(self) -> AbstractContextManager[None]:
        """The update switched off."""
        return adapters.switched_off(self.network) if self._split is None else self._split.base()

    def save(self, folder: Path) -> None:
        """Write PEFT's adapter folder; stock ``PeftModel.from_pretrained`` reads it onto the base."""
        if self._split is None:
            adapters.write(self.network, folder)
        else:
            self._split.write(folder)
