"""Preferences: a chosen answer made likelier than a rejected one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Literal, NamedTuple, final

import torch
from torch import Tensor, nn

from glm_lightning.files import digest
from glm_lightning.losses import preference as losses
from glm_lightning.models.modes import evaluating
from glm_lightning.objectives.base import Objective, Setup, Stage
from glm_lightning.objectives.supervised import sequence_log_probs
from glm_lightning.types import Batch, Loss, Preference, UserError

Variant = Literal["dpo", "ipo", "simpo", "orpo"]
Where = Literal["auto", "live", "cached"]

_WITH_REFERENCE = ("dpo", "ipo")
_OF_MEANS = ("ipo", "simpo", "orpo")
_SMOOTHED = ("dpo", "simpo")


class _Answers(NamedTuple):
    """Log-probabilities of chosen and rejected answers (P,), and how many tokens each has."""

    chosen: Tensor
    rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor

    def means(self) -> _Answers:
        """Of a token instead of a whole answer."""
        chosen, rejected = self.chosen / self.chosen_tokens, self.rejected / self.rejected_tokens
        return self._replace(chosen=chosen, rejected=rejected)


@final
class PairPreference(Objective):
    """DPO and its variants, a mean over pairs; `glm_lightning.losses.preference` has the formulas and their sources.

    Args:
        variant: ``dpo`` and ``ipo`` are told how likely the answers were before training (the reference), ``simpo`` and
            ``orpo`` are not.
        beta: how much a difference of log-probabilities counts.
        gamma: SimPO's margin by which the chosen answer shall be better.
        label_smoothing: share of pairs that are taken to be the wrong way round.
        likelihood: weight of the chosen answer's negative log-likelihood of a token beside that; None is 1 for
            ``orpo``, as published, and 0 for the others.
        reference: ``live`` asks the network as its base in every step, ``cached`` once before the first step, and keeps
            the answer on disk; ``auto`` is ``live`` for adapters, and ``cached`` where the base itself is trained.
    """

    learns = (Preference,)
    metrics = ("accuracy", "margin", "reward_chosen", "reward_rejected", "logp_chosen", "logp_rejected")

    def __init__(
        self,
        *,
        variant: Variant = "dpo",
        beta: float = 0.1,
        gamma: float = 1.0,
        label_smoothing: float = 0.0,
        likelihood: float | None = None,
        reference: Where = "auto",
    ) -> None:
        self.variant, self.beta, self.gamma, self.label_smoothing = variant, beta, gamma, label_smoothing
        self.likelihood = (1.0 if variant == "orpo" else 0.0) if likelihood is None else likelihood
        self.reference = reference
        self._base: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext
        if problems := list(self._wrong_values()):
            raise UserError(problems)

    def _wrong_values(self) -> Iterator[str]:
        if self.beta <= 0:
            yield f"objective.beta is {self.beta}: must be above 0"
        if not 0 <= self.label_smoothing < 0.5:
            yield f"objective.label_smoothing is {self.label_smoothing}: must be in [0, 0.5)"
        elif self.label_smoothing and self.variant not in _SMOOTHED:
            which = " and ".join(_SMOOTHED)
            yield f"objective.label_smoothing is {self.label_smoothing}: only {which} take it; set it to 0"
        if self.likelihood < 0:
            yield f"objective.likelihood is {self.likelihood}: must be 0 or more"

    def clashes(self, setup: Setup) -> Iterator[str]:
        """A base that is trained can be asked before the first step only."""
        if self.reference == "live" and not setup.adapter and self.variant in _WITH_REFERENCE:
            yield (
                "objective.reference is live: this method trains weights of the base itself, which would have to be "
                "read again in every step; set objective.reference=cached"
            )

    def begin(self, stage: Stage) -> None:
        """Ask the base about all pairs, if that is to be done once."""
        self._base = stage.base
        cached = self.reference == "cached" or (self.reference == "auto" and not stage.adapter)
        if self.variant in _WITH_REFERENCE and cached:
            with evaluating(stage.network), stage.base():
                stage.ahead(
                    lambda batch: {"reference": _by_pair(sequence_log_probs(stage.network, batch))},
                    key=digest("reference", stage.base_key, stage.precision),
                    each="sample",
                )

    def loss(self, network: nn.Module, batch: Batch) -> Loss:
        """Sums over the pairs of the micro-batch."""
        reference = self._reference(network, batch) if self.variant in _WITH_REFERENCE else None
        values = sequence_log_probs(network, batch)
        assert batch.sequences is not None
        tokens = torch.bincount(batch.sequences, minlength=len(values))
        whole = _Answers(values[0::2], values[1::2], tokens[0::2], tokens[1::2])
        answers = whole.means() if self.variant in _OF_MEANS else whole
        if reference is not None:
            compared = whole._replace(chosen=reference[:, 0], rejected=reference[:, 1])
            compared = compared.means() if self.variant in _OF_MEANS else compared
            rewards = (answers.chosen - compared.chosen, answers.rejected - compared.rejected)
        else:
            rewards = (answers.chosen, answers.rejected)
        each = self._each(*rewards)
        if self.likelihood:
            each = each - self.likelihood * whole.means().chosen
        return self._summed(each, whole, *(self.beta * reward for reward in rewards))

    def _reference(self, network: nn.Module, batch: Batch) -> Tensor:
        """Log-probabilities (P, 2) by the base."""
        if "reference" in batch.given:
            return batch.given["reference"]
        with torch.no_grad(), evaluating(network), self._base():
            return _by_pair(sequence_log_probs(network, batch))

    def _each(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """The loss of each pair (P,)."""
        margin = chosen - rejected
        if self.variant == "dpo":
            return losses.dpo(margin, beta=self.beta, label_smoothing=self.label_smoothing)
        if self.variant == "ipo":
            return losses.ipo(margin, beta=self.beta)
        if self.variant == "simpo":
            return losses.simpo(margin, beta=self.beta, gamma=self.gamma, label_smoothing=self.label_smoothing)
        return losses.orpo(chosen, rejected, beta=self.beta)

    def _summed(self, each: Tensor, answers: _Answers, chosen: Tensor, rejected: Tensor) -> Loss:
        measured = {
            "accuracy": chosen > rejected,
            "margin": chosen - rejected,
            "reward_chosen": chosen,
            "reward_rejected": rejected,
            "logp_chosen": answers.chosen,
            "logp_rejected": answers.rejected,
        }
        count = torch.full_like(answers.chosen_tokens[:1].sum(), len(each))
        return Loss(each.sum(), count, {name: values.detach().sum() for name, values in measured.items()})


def _by_pair(values: Tensor) -> Tensor:
    """Values (2P,) of chosen and rejected sequences in turn as (P, 2)."""
    return values.reshape(-1, 2)
