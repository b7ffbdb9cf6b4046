"""What all methods share: optimizers, logging, exact accumulation, and what a checkpoint holds."""

from __future__ import annotations

import contextlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from transformers import PreTrainedModel

from glm_lightning import optim
from glm_lightning.files import digest
from glm_lightning.methods import layers, parameters, quantized, tracing, weights
from glm_lightning.methods.counters import recount
from glm_lightning.methods.ingredients import Ingredients
from glm_lightning.models import compiling, cpu_rotary, elementwise, liger, training_attention
from glm_lightning.objectives.base import Stage
from glm_lightning.objectives.supervised import refuse_leaks
from glm_lightning.strategies import Zero
from glm_lightning.strategies.parts import assign, gathered, whole
from glm_lightning.types import Batch, UserError

FSDP = ("fsdp", "fsdp_zero2")
DEEPSPEED = ("deepspeed", "deepspeed_zero2")
SHARDING = (*FSDP, "deepspeed")
"""Values of ``trainer.strategy`` that put parts of a weight on several devices."""

SKIPPED_IN_A_ROW = 20
"""Steps that may be skipped one after another before the network itself must be what is not finite."""


class Method(pl.LightningModule, ABC):
    """A network with a part of it that is trained.

    The network is built in `configure_model`, so constructing a method costs nothing and every strategy can decide
    where its weights go. Leaves are final and say four things: whether a network will do (`check`), what is trained
    (`adapt`), how to look past it (`without_adaptation`) and what is left behind (`save`).
    """

    trains_base: ClassVar[bool]
    """Whether all of the base's own weights change: then mixed precision loads them in float32."""

    artefact: ClassVar[Literal["adapter", "model"]]
    """What `save` writes: PEFT's adapter folder or a whole Hugging Face folder."""

    on_quantized: ClassVar[bool] = True
    """Whether the base may be held in 4 or 8 bits."""

    packs: ClassVar[bool] = True
    """Whether several samples may share a row."""

    refused_strategies: ClassVar[Mapping[str, str]] = {}
    """Values of ``trainer.strategy`` that cannot work, with what to do instead."""

    def __init__(self, ingredients: Ingredients, *, rate: Callable[[str], float] | None = None) -> None:
        """Args:
        ingredients: what every method is given.
        rate: factor on the learning rate of the parameter of a name; None is 1 for all.
        """
        super().__init__()
        self.ingredients = ingredients
        self.notices: list[str] = []  # what the user shall be told once the network is built
        self.network: nn.Module | None = None
        self.extra: nn.Module | None = None  # what the objective trains beside it
        self._start: Mapping[str, Tensor] | None = None  # what the parameters begin with, if not anew
        self._rate = rate
        # Checkpoints hold only what was trained; `on_load_checkpoint` is stricter than Lightning about the rest.
        self.strict_loading = False
        self.num_skipped_steps = 0
        self._skipped_in_a_row = 0
        self._tried_packing = False
        self.step = tracing.Step()
        self._step_sums: Tensor | None = None  # (1 + sums,) shares of the step's means, of this rank
        self._validation: list[Tensor] = []  # `Loss.flat` of each micro-batch
        self._measured: list[str] = []  # names of the sums
        self._seen_by_optimizer: dict[str, float | Tensor] = {}

    @abstractmethod
    def check(self, skeleton: PreTrainedModel) -> None:
        """Raise `UserError` if this network, given on the meta device, cannot be trained this way."""

    def wrong_with(self, strategy: str) -> Iterator[str]:
        """What of this method's knobs cannot work with a value of ``trainer.strategy``."""
        return iter(())

    @abstractmethod
    def adapt(self, network: PreTrainedModel) -> nn.Module:
        """Make ``network`` one in which exactly the parameters to be trained require a gradient."""

    @abstractmethod
    def without_adaptation(self) -> AbstractContextManager[None]:
        """While it is entered, the network answers as its base."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write what was trained into ``folder``, in the standard format that `artefact` names."""

    # -- building

    def examine(self, skeleton: PreTrainedModel) -> None:
        """Raise one `UserError` with all that is wrong with this method on this network, given on the meta device."""
        problems = []
        quantize = self.ingredients.quantize
        if quantize is not None and not self.on_quantized:
            problems.append(
                f"quantize is {quantize}: method={type(self).__name__.lower()} trains weights of the base, which are "
                "frozen in so few bits; use method=qlora, or quantize=null"
            )
        elif quantize is not None:
            problems += quantized.problems(skeleton, quantize)
        try:
            self.check(skeleton)
        except UserError as error:
            problems += error.problems
        if problems:
            raise UserError(problems)

    def configure_model(self) -> None:
        """Load and adapt the network. Lightning calls this once per entry point; only the first does anything."""
        if self.network is not None:
            return
        loaded = self.ingredients.load()
        training_attention.use(loaded)
        cpu_rotary.use(loaded)
        if self.ingredients.liger:
            self.notices.append(liger.apply(loaded))
        else:
            elementwise.use(loaded)
        with _drawn_on_cpu():
            network = self.adapt(loaded)
        if not any(parameter.requires_grad for parameter in network.parameters()):
            raise UserError(f"method={type(self).__name__.lower()}: nothing in this network is trained")
        parameters.widen(network)
        network.train()
        if self.ingredients.compile:
            self.notices.append(compiling.compile_layers(network))
        self.network = network
        self.extra = self.ingredients.objective.extra(network)
        if (start := self.ingredients.start()) is not None:
            if problems := parameters.misfits(self.trained(), start, of="init_from"):
                raise UserError(problems)
            self.take(start)
            self._start = start

    @contextlib.contextmanager
    def as_begun(self) -> Iterator[None]:
        """While it is entered, the network answers as before the first step: as its base, or as the run before."""
        if self._start is None:
            with self.without_adaptation():
                yield
            return
        own = {name: parameter for name, parameter in self.trained().items() if name in self._start}
        with weights.exchanged(own, self._start):
            yield

    def as_written(self) -> AbstractContextManager[None]:
        """While it is entered, compiled layers run as they are written."""
        return compiling.off() if self.ingredients.compile else contextlib.nullcontext()

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """As torch's, but buffers keep their type.

        Lightning's true precisions cast the whole module: in 16 bits rotary frequencies turn far positions elsewhere.
        """
        before = dict(self.named_buffers())
        super().to(*args, **kwargs)
        for name, moved in list(self.named_buffers()):
            if moved.dtype != before[name].dtype:
                path, _, leaf = name.rpartition(".")
                setattr(self.get_submodule(path), leaf, before[name].to(moved.device))
        return self

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer over what is trained, its schedule moving once per optimizer step."""
        of_objective = () if self.extra is None else self.extra.named_parameters(prefix="extra")
        optimizer = self.ingredients.optimizer(itertools.chain(self._network.named_parameters(), of_objective))
        if self._rate is not None:
            optim.scale_rates(optimizer, {p: self._rate(name) for name, p in self.trained().items()})
        self.notices += optim.fallbacks(optimizer)
        scheduler = self.ingredients.scheduler(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    @property
    def _network(self) -> nn.Module:
        assert self.network is not None, "configure_model comes first"
        return self.network

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    @property
    def num_bytes_kept(self) -> int:
        """Bytes of tensors that are kept on the device beside network, gradients and optimizer."""
        return 0

    def take(self, values: Mapping[str, Tensor]) -> None:
        """Give every parameter that is trained its value of a checkpoint."""
        for name, parameter in self.trained().items():
            assign(parameter, values[name])

    def units(self) -> Iterator[nn.Module]:
        """What is put together at once where weights are sharded: each layer, then the network with all the rest."""
        network = self._network
        base = network if isinstance(network, PreTrainedModel) else network.get_base_model()  # type: ignore[operator]
        yield from layers.blocks(base)
        yield base

    @property
    def skipped_step(self) -> bool:
        """Whether the last optimizer step was left out, as its gradients were not finite."""
        return self._skipped_in_a_row > 0

    # -- training

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Make randomness a function of (seed, step, micro-batch, rank): a resumed run needs no random state.

        Before the first packed batch, samples of one row must turn out not to see each other.
        """
        if self.trainer.datamodule.packing and not self._tried_packing:  # type: ignore[attr-defined]
            self._tried_packing = True
            # Ranks that share a network's parts must run it equally often, so all try the first one's batch.
            tried = self.trainer.strategy.broadcast(batch).to(self.device)
            # Lightning's hooks are outside its autocast, and what is trained may be of another type than the rest; to
            # compile for this alone would take longer than the first steps
            with self.as_written(), self.trainer.precision_plugin.forward_context():
                refuse_leaks(self._network, tried)
        of_step = _mixed(self.ingredients.seed, self.trainer.global_step)
        self.ingredients.objective.seed = of_step
        self.step.begin(batch, _mixed(of_step, batch_idx, self.global_rank))

    def on_fit_start(self) -> None:
        """Let the objective load and compute what it needs beside the network."""
        stage = Stage(
            network=self._network,
            adapter=self.artefact == "adapter",
            base=contextlib.nullcontext if self._is_base else self.as_begun,
            base_key=digest(self.ingredients.base, self.ingredients.quantize, parameters.fingerprint(self._start)),
            precision=str(self.trainer.precision),
            device=self.device,
            ahead=lambda *args, **how: self.trainer.datamodule.compute_ahead(*args, **how),  # type: ignore[attr-defined]
        )
        with torch.no_grad(), self.trainer.precision_plugin.forward_context():
            self.ingredients.objective.begin(stage)

    @property
    def _is_base(self) -> bool:
        """Whether nothing of the base's own weights has changed yet: no checkpoint has been loaded."""
        return self.artefact == "model" and self.trainer.ckpt_path is None

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The micro-batch's share of the step's mean over all its supervised tokens, or pairs.

        Lightning divides by the number of micro-batches and the ranks' gradients are averaged, so both are put back:
        what the optimizer sees is the gradient of sum / (tokens of the whole step), whatever the split.
        """
        loss = self.ingredients.objective.loss(self._network, batch)
        self._measured = list(loss.sums)
        shares = loss.flat()[1:] / batch.step_tokens
        self._step_sums = shares if self._step_sums is None else self._step_sums + shares
        share = self.trainer.accumulate_grad_batches * self.trainer.world_size / batch.step_tokens
        # A loss that is not finite makes all gradients so, and by them the norm that every rank sees.
        return loss.total * (share + 0 * loss.total.detach())

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by the norm over everything trained; where that is not finite, the step is not taken.

        The norm is read here, once an optimizer step: before the weights are changed is the last moment at which the
        step can be left out and its micro-batches be run again on the weights that made it.
        """
        strategy, trained = self.trainer.strategy, list(self.trained().values())
        if isinstance(strategy, Zero):  # it has clipped already, and taken the step if it could
            norm = strategy.norm
            self._refuse_endless(norm)
        else:
            norm = whole(nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None]))
            self._refuse_endless(norm)
            if gradient_clip_val is not None:
                nn.utils.clip_grads_with_norm_(trained, gradient_clip_val, norm)
        self._seen_by_optimizer = {"train/lr": optimizer.param_groups[0]["lr"], "train/grad_norm": norm}

    def _refuse_endless(self, norm: Tensor) -> None:
        if torch.isfinite(norm):
            self._skipped_in_a_row = 0
            return
        self.num_skipped_steps += 1
        self._skipped_in_a_row += 1
        # float16 has a scaler that skips such steps by itself and lowers its scale, which a few of them teach it
        is_scaled, is_endless = self.trainer.precision == "16-mixed", self._skipped_in_a_row > SKIPPED_IN_A_ROW
        if is_scaled and not is_endless:
            return
        self.zero_grad(set_to_none=True)  # without gradients the optimizer does nothing
        problem = f"step {self.trainer.global_step + 1}: the gradient norm is {norm.item()}"
        found = self._culprits()
        if is_endless or self.ingredients.on_non_finite == "stop":
            advice = (
                "this step has changed nothing; mend or remove the samples, lower optimizer.lr, set "
                "trainer.precision=32-true, or go on without such steps: on_non_finite=skip"
            )
            raise UserError([*(f"{problem}: {each}" for each in found), advice])
        rank_zero_warn("; ".join([f"{problem}: skipped", *found]))

    def _culprits(self) -> list[str]:
        """What is not finite in this step, of all ranks."""
        with self.as_written():
            found = self.step.findings(
                self._network,
                lambda batch: self.ingredients.objective.loss(self._network, batch).total,
                self.trainer.datamodule.splits.train.origin,  # type: ignore[attr-defined]
                context=self.trainer.precision_plugin.forward_context,
            )
        if self.trainer.world_size > 1:
            of_ranks: list[list[str]] = [[]] * self.trainer.world_size
            torch.distributed.all_gather_object(of_ranks, found)
            found = [f"rank {rank}, {each}" for rank, texts in enumerate(of_ranks) for each in texts]
        return found or ["no micro-batch gives it again alone: their sum overflows, or a kernel is not deterministic"]

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Log the finished optimizer step: the mean over its tokens, over all micro-batches and ranks."""
        if (batch_idx + 1) % self.trainer.accumulate_grad_batches:
            return
        if self.trainer.global_step % self.ingredients.log_every_n_steps == 0 or self.trainer.global_step == 1:
            assert self._step_sums is not None
            loss, *sums = self.trainer.strategy.reduce(self._step_sums, reduce_op="sum")
            self.log("train/loss", loss)
            self.log_dict({f"train/{name}": value for name, value in zip(self._measured, sums, strict=True)})
            # Lightning takes a metric of this name as the curve's x axis, where it would count from 0 itself
            self.log_dict(self._seen_by_optimizer | {"step": float(self.trainer.global_step)})
        self._step_sums = None
        self.step = tracing.Step()

    # -- validation

    def on_validation_epoch_start(self) -> None:
        """Forget the sums of the last time."""
        self._validation = []

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a micro-batch to the sums."""
        with self.as_written():
            loss = self.ingredients.objective.loss(self._network, batch)
        # Left on the device: reading them here would make the host wait for every micro-batch.
        self._measured = list(loss.sums)
        self._validation.append(loss.flat())

    def on_validation_epoch_end(self) -> None:
        """Log the loss, and what the objective measures beside it, over all validation samples of all ranks."""
        for name, value in self.validation_metrics().items():
            self.log(name, value)
        self.log("step", float(self.trainer.global_step))

    def validation_metrics(self) -> dict[str, float]:
        """Exact metrics from the sums of all ranks."""
        sums = torch.stack(self._validation).cpu().double().sum(0)
        if self.trainer.world_size > 1:
            sums = self.trainer.strategy.reduce(sums.to(self.device), reduce_op="sum")
        return {
            f"val/{name}": value for name, value in self.ingredients.objective.of_sums(sums, self._measured).items()
        }

    # -- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only what was trained, and the name of the base it belongs to."""
        checkpoint["state_dict"] = gathered(self.trained(), keep=self.trainer.is_global_zero)
        checkpoint["base"] = self.ingredients.base
        checkpoint["method"] = type(self).__name__
        checkpoint["accumulate_grad_batches"] = self.trainer.accumulate_grad_batches

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse one that does not fit: another base, or a key that is missing, surplus or of another shape."""
        problems = []
        if checkpoint["base"] != self.ingredients.base:
            problems.append(
                f"checkpoint: made on base {checkpoint['base']}, but model.path holds {self.ingredients.base}; "
                "give the base model that the run was started with"
            )
        problems += parameters.misfits(self.trained(), checkpoint["state_dict"], of="checkpoint")
        if problems:
            raise UserError(problems)
        recount(checkpoint, self.trainer.accumulate_grad_batches)


def _drawn_on_cpu() -> AbstractContextManager[Any]:
    """Where new parameters begin: Lightning makes the run's device the default, whose random numbers are its own."""
    is_planned = torch.get_default_device().type == "meta"
    return contextlib.nullcontext() if is_planned else torch.device("cpu")


def _mixed(seed: int, *numbers: int) -> int:
    """Rounds of a 64-bit linear congruential generator (Knuth's MMIX constants) over the numbers."""
    for number in numbers:
        seed = ((seed ^ number) * 6364136223846793005 + 1442695040888963407) % 2**64
    return seed
