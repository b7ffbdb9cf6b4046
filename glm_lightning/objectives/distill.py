"""Distillation: a student learns what a teacher thinks of every next token."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, Protocol, cast, final

import torch
from torch import Tensor, nn

from glm_lightning.files import digest
from glm_lightning.losses.chunks import accumulation_dtype, slices
from glm_lightning.losses.divergence import Divergence, Likeliest, divergence, events, likeliest
from glm_lightning.models.quantization import Quantize
from glm_lightning.models.source import WeightsDtype
from glm_lightning.objectives.base import Objective, Setup, Stage, perplexity
from glm_lightning.objectives.layers import Projections
from glm_lightning.objectives.on_policy import Writer, chosen, rewritten
from glm_lightning.objectives.supervised import Head, at_supervised, refuse_leaks
from glm_lightning.types import Batch, Conversation, Document, Loss, UserError

Kept = Literal["float16", "float32"]

Compare = Callable[[Tensor, slice], Tensor]
"""From the student's log-probabilities (n, V) at some of the positions to their divergences (n,)."""


class Teacher(Protocol):
    """A network that is known, and not loaded yet."""

    @property
    def fingerprint(self) -> str:
        """Names its weights and the types they are held in."""

    @property
    def config(self) -> Any:
        """Its configuration in transformers' form."""

    def load(self, device: torch.device) -> nn.Module:
        """The network, in evaluation mode."""


@final
class Distill(Objective):
    """Divergence of the student's distribution from the teacher's at every supervised position, and cross-entropy.

    With D the divergence of the two distributions at ``temperature`` T and w the share of ``cross_entropy``, a token's
    loss is (1 - w) T^2 D + w times cross-entropy
    (Hinton et al. 2015, arXiv:1503.02531; T^2 keeps D's gradient in proportion). A token that the student has written
    itself (`on_policy`) has no label: its loss is T^2 D.

    Args:
        teacher: a model folder, a name on a hub, ``demo``, a run or an adapter folder.
        teacher_quantize: hold its linear layers in ``nf4``, ``fp4`` or ``int8``.
        teacher_dtype: type of its weights; ``auto`` is its own on a GPU, float32 on a CPU.
        divergence: see `glm_lightning.losses.divergence`.
        js_weight: weight of the teacher's side in ``jensen_shannon``.
        temperature: above 1 unlikely tokens count for more.
        cross_entropy: share of the labels' cross-entropy.
        top_k: None asks the teacher in every step; a number asks it once, before the first step, and keeps its
            likeliest tokens, and the mass of all others, on disk.
        top_k_dtype: of the log-probabilities that are kept.
        hidden_states: weight of the distance of the layers' hidden states, which a learned projection takes from the
            student's width to the teacher's; 0 is without.
        on_policy: share of the training samples whose last answer the student writes itself, anew each time.
        on_policy_tokens: tokens that such an answer has at the most.
    """

    learns = (Conversation, Document)
    metrics = ("divergence", "perplexity", "token_accuracy")

    def __init__(
        self,
        *,
        teacher: str,
        teacher_quantize: Quantize | None = None,
        teacher_dtype: WeightsDtype = "auto",
        divergence: Divergence = "forward_kl",
        js_weight: float = 0.5,
        temperature: float = 1.0,
        cross_entropy: float = 0.5,
        top_k: int | None = None,
        top_k_dtype: Kept = "float16",
        hidden_states: float = 0.0,
        on_policy: float = 0.0,
        on_policy_tokens: int = 128,
    ) -> None:
        self.teacher, self.teacher_quantize, self.teacher_dtype = teacher, teacher_quantize, teacher_dtype
        self.divergence, self.js_weight, self.temperature = divergence, js_weight, temperature
        self.cross_entropy, self.top_k, self.hidden_states = cross_entropy, top_k, hidden_states
        self.on_policy, self.on_policy_tokens = on_policy, on_policy_tokens
        self.packs = not on_policy
        self._kept_dtype = torch.float16 if top_k_dtype == "float16" else torch.float32
        self._known: Teacher | None = None
        self._write: Writer | None = None
        self._network: nn.Module | None = None
        self._projections: Projections | None = None
        self._tried_packing = False
        if problems := list(self._wrong_values()):
            raise UserError(problems)

    def _wrong_values(self) -> Iterator[str]:
        if not 0 < self.js_weight < 1:
            yield f"objective.js_weight is {self.js_weight}: must be between 0 and 1; for its ends take a KL divergence"
        if self.temperature <= 0:
            yield f"objective.temperature is {self.temperature}: must be above 0"
        if not 0 <= self.cross_entropy < 1:
            yield f"objective.cross_entropy is {self.cross_entropy}: must be in [0, 1); for 1 take objective=sft"
        if self.top_k is not None and self.top_k < 1:
            yield f"objective.top_k is {self.top_k}: must be 1 or more, or null to ask the teacher in every step"
        if self.hidden_states < 0:
            yield f"objective.hidden_states is {self.hidden_states}: must be 0 or more"
        elif self.hidden_states and self.top_k is not None:
            yield (
                f"objective.hidden_states is {self.hidden_states}: the teacher's hidden states are not kept on disk; "
                "set objective.top_k=null, or objective.hidden_states=0"
            )

        if not 0 <= self.on_policy <= 1:
            yield f"objective.on_policy is {self.on_policy}: must be in [0, 1], a share of the samples"
        if self.on_policy_tokens < 1:
            yield f"objective.on_policy_tokens is {self.on_policy_tokens}: must be 1 or more"
        if self.on_policy and (self.top_k is not None or self.hidden_states):
            other = "top_k=null" if self.top_k is not None else "hidden_states=0"
            yield (
                f"objective.on_policy is {self.on_policy}: the teacher is asked of each answer once it is written, "
                f"for its distribution alone; set objective.{other}, or objective.on_policy=0"
            )

    def clashes(self, setup: Setup) -> Iterator[str]:
        """While training goes on, answers are written one token after the other."""
        if not self.on_policy:
            return
        start = f"objective.on_policy is {self.on_policy}: answers are written while training goes on, which "
        if setup.packing:
            yield f"{start}needs rows of one sample each; set data.packing=false"
        if setup.compiled:
            yield f"{start}would compile the layers anew for every length; set model.compile=false"
        if setup.sharded:
            yield f"{start}needs whole weights on every rank; use trainer=ddp"

    def take(self, teacher: Teacher, write: Writer) -> None:
        """Learn from ``teacher``, and let the student ``write`` what is to be written."""
        self._known, self._write = teacher, write

    @property
    def _of_teacher(self) -> Teacher:
        assert self._known is not None, "take comes first"
        return self._known

    def extra(self, network: nn.Module) -> nn.Module | None:
        """The projections of hidden states, if they are compared."""
        if self.hidden_states:
            self._projections = Projections(network.config, self._of_teacher.config)
        return self._projections

    def begin(self, stage: Stage) -> None:
        """Load the teacher, or ask it about all samples if that is to be done once."""
        if self.top_k is None:
            self._network = self._of_teacher.load(stage.device).requires_grad_(False)
            return
        load = functools.cache(lambda: self._of_teacher.load(stage.device))  # what is on disk needs no teacher
        settings = (self.top_k, str(self._kept_dtype), self.temperature, stage.precision)
        stage.ahead(
            lambda batch: self._likeliest(load(), batch)._asdict(),
            key=digest("likeliest", self._of_teacher.fingerprint, *settings),
            each="token",
        )

    def _likeliest(self, network: nn.Module, batch: Batch) -> Likeliest:
        """The teacher's likeliest tokens at the supervised positions."""
        assert self.top_k is not None
        parts: list[Likeliest] = []

        def keep(head: Head, hidden_states: Tensor) -> Tensor:
            for rows in slices(len(hidden_states), head.vocabulary) or [slice(0, 0)]:
                found = likeliest(self._log_probs(head.project(hidden_states[rows])), cast(int, self.top_k))
                kept = (found.log_probs.to(self._kept_dtype), found.rest.to(self._kept_dtype))
                parts.append(Likeliest(found.ids, *kept))
            return hidden_states

        at_supervised(network, batch, keep)
        return Likeliest(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))

    def _log_probs(self, logits: Tensor) -> Tensor:
        """At the temperature, in the type of sums."""
        return (logits.to(accumulation_dtype(logits.dtype)) / self.temperature).log_softmax(-1)

    def loss(self, network: nn.Module, batch: Batch) -> Loss:
        """Sums over the micro-batch's supervised tokens."""
        count = batch.lengths.new_full((), batch.targets.numel())
        batch, shares = self._with_own_answers(network, batch)
        options = {"output_hidden_states": True} if self.hidden_states else {}
        of_teacher = None if "ids" in batch.given else self._asked(batch, **options)
        compare = self._to_kept(batch) if of_teacher is None else self._to_live(*of_teacher)
        results: list[Tensor] = []

        def minimised(head: Head, hidden_states: Tensor) -> Tensor:
            results.append(head.sums(hidden_states, functools.partial(self._sums, batch, compare, shares)))
            return results[0][0]

        outputs = at_supervised(network, batch, minimised, **options)
        total, (_, *measured) = outputs.logits, results[0]
        sums = dict(zip(("divergence", "cross_entropy", "token_accuracy"), measured, strict=True))
        if of_teacher is None:
            sums["kept_probability"] = -batch.given["rest"].to(total.dtype).expm1().sum()
        if self._projections is not None and of_teacher is not None:
            distance = self._projections(outputs.hidden_states, of_teacher[2].hidden_states, batch)
            total = total + self.hidden_states * distance
            sums["hidden_states"] = distance
        return Loss(total, count, sums)

    def _with_own_answers(self, network: nn.Module, batch: Batch) -> tuple[Batch, Tensor | None]:
        """The batch with answers of the student's own, if any is due, and each token's weight and share of labels."""
        rows = chosen(batch, share=self.on_policy, seed=self.seed) if network.training else []
        if not rows:
            return batch, None
        assert self._write is not None, "take comes first"
        made = rewritten(network, batch, rows, self._write, seed=self.seed, max_new_tokens=self.on_policy_tokens)
        return made.batch, torch.stack([made.weight, self.cross_entropy * (~made.own).to(made.weight)])

    def _sums(self, batch: Batch, compare: Compare, shares: Tensor | None, logits: Tensor, rows: slice) -> Tensor:
        """What is minimised, divergence, cross-entropy and right predictions of some of the positions."""
        targets = batch.targets[rows]
        cross_entropy = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        diverged = compare(logits, rows) * self.temperature**2
        weight, of_labels = (1.0, self.cross_entropy) if shares is None else shares[:, rows].to(diverged)
        total = (1 - of_labels) * diverged + of_labels * cross_entropy
        correct = (logits.argmax(-1) == targets).to(total)
        return torch.stack([(weight * each).sum() for each in (total, diverged, cross_entropy, correct)])

    def _asked(self, batch: Batch, **options: Any) -> tuple[Head, Tensor, Any]:
        """The teacher's head, its hidden states at the supervised positions, and all that its network gives."""
        assert self._network is not None, "begin comes first"
        if batch.position_ids is not None and not self._tried_packing:
            self._tried_packing = True
            refuse_leaks(self._network, batch)
        found: list[tuple[Head, Tensor]] = []

        def keep(head: Head, hidden_states: Tensor) -> Tensor:
            found.append((head, hidden_states))
            return hidden_states

        with torch.no_grad():
            outputs = at_supervised(self._network, batch, keep, **options)
        return (*found[0], outputs)

    def _to_live(self, head: Head, hidden_states: Tensor, _: Any) -> Compare:
        def compare(logits: Tensor, rows: slice) -> Tensor:
            with torch.no_grad():
                asked = head.project(hidden_states[rows])
            # tables of one tokenizer may be filled up to different sizes
            shared = min(logits.shape[-1], asked.shape[-1])
            return self._diverged(self._log_probs(asked[:, :shared]), self._log_probs(logits[:, :shared]))

        return compare

    def _to_kept(self, batch: Batch) -> Compare:
        kept = Likeliest(**{name: batch.given[name] for name in Likeliest._fields})
        shared = self._of_teacher.config.get_text_config().vocab_size

        def compare(logits: Tensor, rows: slice) -> Tensor:
            student = self._log_probs(logits[:, :shared])
            return self._diverged(*events(student, Likeliest(*(tensor[rows] for tensor in kept))))

        return compare

    def _diverged(self, teacher: Tensor, student: Tensor) -> Tensor:
        return divergence(teacher, student, kind=self.divergence, weight=self.js_weight)

    def measured(self, means: Mapping[str, float]) -> dict[str, float]:
        """With the perplexity; see `Objective.measured`."""
        others = {name: value for name, value in means.items() if name != "cross_entropy"}
        return others | {"perplexity": perplexity(means["cross_entropy"])}
