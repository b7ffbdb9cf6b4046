"""What a network can do before the first step and after the last."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, final

import lightning.pytorch as pl
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from glm_lightning.callbacks import BestAndLast
from glm_lightning.data.dataset import Dataset
from glm_lightning.evaluation import Record, Scores, Share
from glm_lightning.files import read_json, write_json
from glm_lightning.methods.base import Method
from glm_lightning.runs.checkpoints import load_trained
from glm_lightning.strategies import shares_weights
from glm_lightning.training import forgetting

T = TypeVar("T")


class Examine(Protocol):
    """Answers the test rows."""

    def __call__(self, network: torch.nn.Module, *, share: Share) -> Scores:
        """Answer the rank's share of the rows; the scores are those of all."""
        ...


@final
class Examination(Callback):
    """Measures validation loss and answers the test rows, on all ranks, before and after training.

    Runs inside the fit, where the network is on its device. ``after`` measures the best checkpoint, or the last weights
    if those are better; what is measured stays in the network. A resumed run finds ``before`` in its folder.
    ``samples`` answers go to TensorBoard as text.
    """

    def __init__(self, *, before: Path, examine: Examine | None, samples: int) -> None:
        self._before_file, self._examine, self._samples = before, examine, samples
        self._is_known = False
        self.earlier: dict[str, Dataset] = {}
        """Rows that are learned no more, by name: their loss says what is forgotten."""
        self.taken: Literal["best", "last"] = "last"
        """The checkpoint that the weights are of in the end."""
        self.before: dict[str, float] = {}
        self.after: dict[str, float] = {}
        self.answers_before: list[Record] = []
        self.answers_after: list[Record] = []

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find what an earlier part of the run has measured; on_train_start does not come where no step is left."""
        # The first rank's word counts: all measure or none, whatever another machine sees of the folder.
        is_there = trainer.is_global_zero and self._before_file.is_file()
        kept = trainer.strategy.broadcast(read_json(self._before_file) if is_there else None)
        self._is_known = kept is not None
        if kept is not None:
            self.before, self.answers_before = kept["metrics"], kept["answers"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure the base."""
        if self._is_known:
            return
        self.before, self.answers_before = self._measure(trainer, pl_module)
        if trainer.is_global_zero:
            write_json(self._before_file, {"metrics": self.before, "answers": self.answers_before})
        self._log(trainer, self.before, self.answers_before)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure the best checkpoint, after all that watches the training has seen its end."""
        # Lightning has moved the network to the CPU by now.
        trainer.strategy.model_to_device()
        self._take_best(trainer, pl_module)
        self.after, self.answers_after = self._measure(trainer, pl_module)
        scores = {name: value for name, value in self.after.items() if not name.startswith("val/")}
        self._log(trainer, scores, self.answers_after)

    def _take_best(self, trainer: pl.Trainer, module: Any) -> None:
        """Load the best checkpoint, unless the last steps, which no validation has seen yet, are better."""
        keepers = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, BestAndLast)]
        if not keepers or not keepers[0].best.is_dir() or keepers[0].best_step == trainer.global_step:
            return
        best = keepers[0]
        if best.validated_step != trainer.global_step and self._last(trainer, module)["val/loss"] < best.best_value:
            return
        module.take(load_trained(best.best))
        self.taken = "best"

    def _last(self, trainer: pl.Trainer, module: Method) -> dict[str, float]:
        module.eval()
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            return self._validate(trainer, module)

    def _measure(self, trainer: pl.Trainer, module: Any) -> tuple[dict[str, float], list[Record]]:
        assert isinstance(module, Method)
        metrics: dict[str, float] = {}
        answers: list[Record] = []
        module.eval()
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            if trainer.datamodule.splits.val is not None:  # type: ignore[attr-defined]
                metrics |= self._validate(trainer, module)
            for name, part in self.earlier.items():
                metrics[f"{forgetting.GROUP}/{name}"] = forgetting.loss(trainer, module, part)
            if self._examine is not None:
                assert module.network is not None
                share = Share(trainer.global_rank, trainer.world_size, in_step=shares_weights(trainer.strategy))
                with module.as_written():
                    scores = self._examine(module.network, share=share)
                metrics |= {f"test/{name}": value for name, value in scores.metrics.items()}
                answers = scores.answers
        module.train()
        trainer.strategy.barrier("examination")
        return metrics, answers

    def _validate(self, trainer: pl.Trainer, module: Method) -> dict[str, float]:
        module.on_validation_epoch_start()
        loader = trainer.datamodule.val_dataloader()  # type: ignore[attr-defined]
        for index, batch in enumerate(loader):
            module.validation_step(trainer.strategy.batch_to_device(batch), index)
        return module.validation_metrics()

    def _log(self, trainer: pl.Trainer, metrics: dict[str, float], answers: list[Record]) -> None:
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)
            if isinstance(logger, TensorBoardLogger):
                for index, answer in enumerate(spread(answers, self._samples)):
                    text = f"**{answer['prompt']}**\n\n{answer['answer']}"
                    logger.experiment.add_text(f"answers/{index}", text, global_step=trainer.global_step)


def spread(items: Sequence[T], count: int) -> list[T]:
    """``count`` of ``items``, evenly spread over them."""
    return [items[index * len(items) // count] for index in range(min(count, len(items)))]
