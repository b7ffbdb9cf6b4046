"""The teacher of a distillation: found and compared with the student before anything is loaded."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast, final

import torch
from torch import nn
from transformers import PretrainedConfig

from glm_lightning.config import command
from glm_lightning.estimate.skeleton import num_bytes, skeleton
from glm_lightning.files import digest, sampled_fingerprint
from glm_lightning.inference import generation, loading
from glm_lightning.inference.endpoint import is_endpoint
from glm_lightning.inference.sampling import Sampling
from glm_lightning.models.quantization import Quantize
from glm_lightning.models.source import WeightsDtype
from glm_lightning.objectives.base import Objective
from glm_lightning.objectives.distill import Distill
from glm_lightning.templates import Template
from glm_lightning.tokenizers import Tokenizer
from glm_lightning.types import UserError


@final
@dataclass(frozen=True)
class Known:
    """A teacher that is known, and not loaded yet; ``source`` is what `loading.load` takes."""

    source: str
    quantize: Quantize | None
    dtype: WeightsDtype | None  # None: its own on a GPU, float32 on a CPU

    @cached_property
    def found(self) -> loading.Found:
        """Its base, its adapter, and where its tokenizer lies."""
        return loading.resolve(self.source)

    @property
    def config(self) -> PretrainedConfig:
        """The base's configuration."""
        return self.found.base.config

    @property
    def fingerprint(self) -> str:
        """Names the weights of base and adapter, and the types they are held in."""
        base, adapter, _ = self.found
        files = sorted(Path(adapter).iterdir()) if adapter is not None else []
        of_adapter = [(file.name, sampled_fingerprint(file)) for file in files if file.is_file()]
        held = self.quantize or base.quantize
        return digest(base.fingerprint, of_adapter, held, self.dtype)

    def words(self) -> tuple[Tokenizer, Template]:
        """Its tokenizer and its template."""
        return loading.words(self.found.base, self.found.files)

    @property
    def num_bytes(self) -> int:
        """Bytes of its weights; those of an adapter are left out."""
        base = self.found.base if self.quantize is None else replace(self.found.base, quantize=self.quantize)
        return num_bytes(skeleton(base, dtype=self.dtype or "auto"))

    def load(self, device: torch.device) -> nn.Module:
        """The network on ``device``, in evaluation mode."""
        return cast(
            nn.Module, loading.load(self.source, dtype=self.dtype, quantize=self.quantize, device=str(device)).model
        )


def teacher_of(objective: Objective, rows: Sequence[str] = ("QUESTIONS.jsonl",)) -> Known | None:
    """The teacher that an objective wants, if it does; ``rows`` are files that it may answer instead.

    Raises:
        UserError: there is none, or it cannot be loaded.
    """
    if not isinstance(objective, Distill):
        return None
    if is_endpoint(objective.teacher):
        raise UserError(
            f"objective.teacher is {objective.teacher!r}: an endpoint tells what it says, and not what it thinks of "
            f"every other token; {_by_answers(objective.teacher, rows)}"
        )
    dtype = None if objective.teacher_dtype == "auto" else objective.teacher_dtype
    known = Known(objective.teacher, objective.teacher_quantize, dtype)
    try:
        known.found.base.check()
    except UserError as error:
        raise UserError(
            [f"objective.teacher is {objective.teacher!r}: {problem}" for problem in error.problems]
        ) from None
    return known


def equip(
    objective: Objective, tokenizer: Tokenizer, template: Template, *, student: str, rows: Sequence[str]
) -> Iterator[str]:
    """Give the objective its teacher, if it wants one; what the user shall be told of it.

    ``student`` is its base's fingerprint, ``rows`` are where the rows to learn are.

    Raises:
        UserError: teacher and student do not have the same tokens.
    """
    known = teacher_of(objective, rows)
    if known is None:
        return
    assert isinstance(objective, Distill)
    its_tokenizer, its_template = known.words()
    if differing := _differing(its_tokenizer, tokenizer):
        raise UserError(
            f"objective.teacher is {known.source!r}: its tokenizer is another one ({differing}), so what it thinks of "
            f"the next token says nothing to this student; {_by_answers(known.source, rows)}"
        )
    stop_ids = [tokenizer.control_id(name) for name in template.stop_tokens]
    objective.take(known, functools.partial(_written, stop_ids=stop_ids))
    if known.found.adapter is None and known.found.base.fingerprint == student:
        yield (
            "the teacher is the student as it begins, which can teach it nothing but to stay so; name another one in "
            "objective.teacher, or make the student smaller with model.num_layers"
        )
    if its_template.name != template.name:
        yield (
            f"the teacher was trained with the template {its_template.name}; it is shown rows as the student is, by "
            f"{template.name}"
        )


def _by_answers(teacher: str, rows: Sequence[str]) -> str:
    """The other way to learn from a teacher, as commands."""
    asked = shlex.join([teacher, *rows])
    return (
        f"let it write answers and learn those: glm predict {asked} --out answers.jsonl, then {command()} "
        "objective=sft data=auto data.train=answers.jsonl and the rest as it is"
    )


def _written(
    network: nn.Module,
    prompts: Sequence[list[int]],
    *,
    draws: Sequence[int],
    seed: int,
    max_new_tokens: int,
    stop_ids: Collection[int],
) -> list[list[int]]:
    """Answers as ``network`` draws them, their stop tokens included; see `on_policy.Writer`."""
    answers = generation.answer(
        network,
        prompts,
        draws=draws,
        stop_ids=stop_ids,
        pad_id=0,
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature=1.0, seed=seed),
    )
    return [each.ids if each.stop is None else [*each.ids, each.stop] for each in answers]


def _differing(one: Tokenizer, other: Tokenizer) -> str:
    """A token that has another id, in words; empty where all have the same."""
    if one.fingerprint == other.fingerprint:
        return ""
    theirs: dict[Any, int] = one.hf.get_vocab()
    mine: dict[Any, int] = other.hf.get_vocab()
    for token, number in sorted(mine.items(), key=lambda item: item[1]):
        if theirs.get(token) != number:
            return f"{token!r} is {number} here and {theirs.get(token, 'no token')} there"
    return ""
