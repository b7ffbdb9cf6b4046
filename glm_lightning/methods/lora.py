"""LoRA: a trained low-rank update beside frozen weights."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal, cast, final

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from glm_lightning.methods.base import Ingredients, Method
from glm_lightning.types import UserError


@final
class LoRA(Method):
    """W x + (alpha / rank) B A x with only A and B trained (Hu et al. 2021, arXiv:2106.09685), by PEFT.

    Args:
        ingredients: what every method is given.
        rank: inner width of the update.
        alpha: scale of the update; alpha / rank multiplies it.
        dropout: share of the update's inputs dropped while training.
        targets: ``all-linear`` (every linear layer but the head), or names of layers as they end.
        rslora: divide by the root of the rank instead (Kalajdzievski 2023, arXiv:2312.03732).
        dora: learn the magnitude apart from the direction (Liu et al. 2024, arXiv:2402.09353).
        init: how A and B begin; ``default`` starts at the base exactly.
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
        targets: Literal["all-linear"] | list[str] = "all-linear",
        rslora: bool = False,
        dora: bool = False,
        init: Literal["default", "gaussian"] = "default",
    ) -> None:
        super().__init__(ingredients)
        problems = []
        if rank < 1:
            problems.append(f"method.rank is {rank}: must be 1 or more")
        if not 0 <= dropout < 1:
            problems.append(f"method.dropout is {dropout}: must be in [0, 1)")
        if not targets:
            problems.append("method.targets is empty: give all-linear or names of linear layers")
        if problems:
            raise UserError(problems)
        self.peft_config = LoraConfig(
            r=rank,
            lora_alpha=alpha,  # type: ignore[arg-type]
            lora_dropout=dropout,
            target_modules=targets,
            use_rslora=rslora,
            use_dora=dora,
            init_lora_weights=True if init == "default" else init,
            task_type="CAUSAL_LM",
        )

    def check(self, skeleton: PreTrainedModel) -> None:
        """Every target must name a linear layer."""
        targets = self.peft_config.target_modules
        if isinstance(targets, str):
            return
        linear = [name for name, module in skeleton.named_modules() if isinstance(module, nn.Linear)]
        ends = sorted({name.rpartition(".")[2] for name in linear})
        missing = [t for t in sorted(targets or ()) if not any(n == t or n.endswith(f".{t}") for n in linear)]
        if missing:
            raise UserError(
                [f"method.targets holds {t!r}: matches no linear layer; there are {', '.join(ends)}" for t in missing]
            )

    def adapt(self, network: PreTrainedModel) -> nn.Module:
        """Freeze the base and put adapters beside the targets; the adapters are float32 (PEFT's autocast)."""
        network.requires_grad_(False)
        return cast(nn.Module, get_peft_model(network, self.peft_config))

    def without_adaptation(self) -> AbstractContextManager[None]:
        """Adapters off: the same weights, no second copy."""
        return cast(AbstractContextManager[None], cast(PeftModel, self.network).disable_adapter())

    def save(self, folder: Path) -> None:
        """Write PEFT's adapter folder; stock ``PeftModel.from_pretrained`` reads it."""
        cast(PeftModel, self.network).save_pretrained(str(folder))
