"""AdaLoRA: low-rank updates whose ranks are moved to where they matter."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast, final

import lightning.pytorch as pl
import torch
from lightning.pytorch import Callback
from peft import AdaLoraConfig, PeftModel
from peft.tuners.adalora import AdaLoraModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from glm_lightning.methods import adapters, layers
from glm_lightning.methods.base import DEEPSPEED, FSDP, Method
from glm_lightning.methods.ingredients import Ingredients
from glm_lightning.types import UserError


@final
class AdaLoRA(Method):
    """W x + alpha / rank B diag(E) A x; singular values E of little importance are set to zero (Zhang et al. 2023).

    arXiv:2303.10512, by PEFT. Every update begins with ``init_rank`` values; between warm-up and cool-down their number
    falls, by a cubic curve, to ``target_rank`` on average.

    Args:
        ingredients: what every method is given.
        target_rank: values that an update has in the end, on average over the updates.
        init_rank: values that each has in the beginning.
        alpha: scale of the update.
        dropout: share of the update's inputs dropped while training.
        targets: ``all-linear`` (every linear layer but the head), ``attention``, ``qkv``, names of layers as they end,
            or a regular expression of whole names.
        warmup: steps before the first value is taken: a share of the run below 1, else their number.
        cooldown: steps at the end with ranks as they are, likewise.
        interval: optimizer steps from one allocation to the next.
        smoothing: share that the running averages of importance keep at each step (beta1 and beta2 of the paper).
        orthogonality: weight of the penalty that keeps A and B orthogonal, added to the loss of each step.
    """

    trains_base = False
    artefact = "adapter"
    refused_strategies = dict.fromkeys(
        (*FSDP, *DEEPSPEED), "ranks cannot be allocated over gradients in parts; use method=lora, or trainer=ddp"
    )

    def __init__(
        self,
        ingredients: Ingredients,
        *,
        target_rank: int = 8,
        init_rank: int = 12,
        alpha: float = 32,
        dropout: float = 0.0,
        targets: str | list[str] = "all-linear",
        warmup: float = 0.1,
        cooldown: float = 0.3,
        interval: int = 1,
        smoothing: float = 0.85,
        orthogonality: float = 0.5,
    ) -> None:
        super().__init__(ingredients)
        self.target_rank, self.init_rank, self.alpha = target_rank, init_rank, alpha
        self.dropout, self.targets = dropout, targets
        self.warmup, self.cooldown, self.interval = warmup, cooldown, interval
        self.smoothing, self.orthogonality = smoothing, orthogonality
        self._allocation = Allocation(orthogonality=orthogonality)
        if problems := list(self._wrong_values()):
            raise UserError(problems)

    def _wrong_values(self) -> Iterator[str]:
        rules: tuple[tuple[str, bool, str], ...] = (
            ("target_rank", self.target_rank >= 1, "1 or more"),
            ("init_rank", self.init_rank > self.target_rank, f"above method.target_rank, {self.target_rank}"),
            ("alpha", self.alpha > 0, "above 0"),
            ("dropout", 0 <= self.dropout < 1, "in [0, 1)"),
            ("targets", bool(self.targets), f"one of {', '.join(layers.PRESETS)}, or names of linear layers"),
            ("warmup", self.warmup >= 0, "0 or more (below 1: a share of the run)"),
            ("cooldown", self.cooldown >= 0, "0 or more (below 1: a share of the run)"),
            ("interval", self.interval >= 1, "1 or more"),
            ("smoothing", 0 < self.smoothing < 1, "in (0, 1)"),
            ("orthogonality", self.orthogonality >= 0, "0 or more"),
        )
        for key, fine, rule in rules:
            if not fine:
                yield f"method.{key} is {getattr(self, key)}: must be {rule}"
        total = self.ingredients.num_steps
        # PEFT measures importance in all steps of the allocation but the last.
        if total is not None and total - self._steps(self.cooldown) <= max(1, self._steps(self.warmup)):
            yield (
                f"method.warmup is {self.warmup} and method.cooldown {self.cooldown}: of {total} optimizer steps "
                "none is left to allocate ranks in; lower them, or train longer"
            )

    def _steps(self, share: float) -> int:
        assert self.ingredients.num_steps is not None
        return int(share * self.ingredients.num_steps) if share < 1 else int(share)

    def check(self, skeleton: PreTrainedModel) -> None:
        """Every target must lead to a layer."""
        if problems := layers.problems("method.targets", self.targets, skeleton):
            raise UserError(problems)

    def adapt(self, network: PreTrainedModel) -> nn.Module:
        """Freeze the base and put updates beside the targets."""
        if layers.experts(network):
            self.notices.append("the experts are not adapted: they are no linear layers; method=lora can")
        config = AdaLoraConfig(
            target_r=self.target_rank,
            init_r=self.init_rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]
            lora_dropout=self.dropout,
            target_modules=layers.resolved(self.targets, network),
            tinit=self._steps(self.warmup),
            tfinal=self._steps(self.cooldown),
            deltaT=self.interval,
            beta1=self.smoothing,
            beta2=self.smoothing,
            orth_reg_weight=self.orthogonality,
            total_step=self.ingredients.num_steps,
            task_type="CAUSAL_LM",
        )
        adapted = adapters.put_on(network, config)
        self._allocation.begin(cast(PeftModel, adapted))
        return adapted

    def configure_callbacks(self) -> list[Callback]:
        """What allocates the ranks."""
        return [self._allocation]

    @property
    def num_bytes_kept(self) -> int:
        """PEFT's three averages for each number that is trained."""
        return 3 * sum(parameter.nbytes for parameter in self.trained().values())

    def without_adaptation(self) -> AbstractContextManager[None]:
        """The updates switched off."""
        return adapters.switched_off(self.network)

    def save(self, folder: Path) -> None:
        """Write PEFT's adapter folder with the ranks that are left; stock ``PeftModel.from_pretrained`` reads it."""
        with self._allocation.ranks_as_they_are():
            adapters.write(self.network, folder)


@final
class Allocation(Callback):
    """Adds the penalty to each step's gradients, and lets PEFT allocate ranks after it.

    Lightning keeps what `state_dict` gives in the checkpoint: PEFT's running averages are no part of the network.
    """

    def __init__(self, *, orthogonality: float) -> None:
        self._orthogonality = orthogonality
        self._tuner: Any = None

    def begin(self, network: PeftModel) -> None:
        """Watch the updates of ``network``."""
        self._tuner = cast(AdaLoraModel, network.base_model)

    def _updates(self, *sides: str) -> dict[str, nn.Parameter]:
        named = self._tuner.model.named_parameters()
        return {name: p for name, p in named if any(f".lora_{side}." in name for side in sides)}

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        """Add the penalty's gradient to those of the whole step, once, whatever micro-batches and ranks it has."""
        if not self._orthogonality:
            return
        named = self._updates("A", "B")
        with torch.enable_grad():
            gradients = torch.autograd.grad(self._orthogonality * penalty(named), list(named.values()))
        for parameter, gradient in zip(named.values(), gradients, strict=True):
            assert parameter.grad is not None
            parameter.grad += gradient

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Allocate after the optimizer's step; its gradients are there until the next one's."""
        finished_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if finished_step and not cast(Method, pl_module).skipped_step:
            self._tuner.update_and_allocate(trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """The running averages and the ranks."""
        allocator = self._tuner.rankallocator
        return {
            "importance": dict(allocator.exp_avg_ipt),
            "uncertainty": dict(allocator.exp_avg_unc),
            "ranks": self._config.rank_pattern,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        allocator, updates = self._tuner.rankallocator, self._updates("A", "B", "E")
        importance, uncertainty = state_dict["importance"], state_dict["uncertainty"]
        allocator.exp_avg_ipt = {name: value.to(updates[name].device) for name, value in importance.items()}
        allocator.exp_avg_unc = {name: value.to(updates[name].device) for name, value in uncertainty.items()}
        allocator.ipt = {name: torch.zeros_like(value) for name, value in allocator.exp_avg_ipt.items()}
        self._config.rank_pattern = state_dict["ranks"]

    @property
    def _config(self) -> AdaLoraConfig:
        return cast(AdaLoraConfig, self._tuner.peft_config["default"])

    @contextlib.contextmanager
    def ranks_as_they_are(self) -> Iterator[None]:
        """While it is entered, the configuration names the values that are not zero now.

        Those of the last allocation may belong to other weights than these, if these are of an earlier step. An update
        without any keeps one, which is zero: PEFT takes empty tensors for a torn file.
        """
        kept = self._config.rank_pattern
        ranks = {name: (values != 0).flatten().tolist() for name, values in self._updates("E").items()}
        ranks = {name: values if any(values) else [True, *values[1:]] for name, values in ranks.items()}
        self._config.rank_pattern = ranks
        try:
            yield
        finally:
            self._config.rank_pattern = kept


def penalty(updates: dict[str, nn.Parameter]) -> Tensor:
    """Mean over the updates' A (rank, inputs) and B (outputs, rank) of |A A' - 1| and |B' B - 1| (Frobenius).

    Source: equation 4 of the paper, with PEFT's root and mean.
    """
    norms = []
    for name, matrix in updates.items():
        product = matrix @ matrix.T if ".lora_A." in name else matrix.T @ matrix
        norms.append(torch.linalg.matrix_norm(product - torch.eye(len(product)).to(product)))
    return torch.stack(norms).mean()
