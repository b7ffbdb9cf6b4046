"""How the next tokens are chosen: the likeliest ones, or drawn, each row from a generator of its own."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast, final

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from glm_lightning.types import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How answers are drawn.

    Args:
        temperature: 0 takes the likeliest token; above, what logits are divided by.
        top_p: only the most likely tokens whose probabilities add up to this are drawn.
        seed: of the draws; None takes a fresh one.

    Raises:
        UserError: a value that cannot be.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        problems = []
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            problems.append(f"temperature is {self.temperature}: must be 0 (the likeliest token) or more")
        if not 0 < self.top_p <= 1:
            problems.append(f"top_p is {self.top_p}: must be above 0 and at most 1")
        if self.seed is not None and not 0 <= self.seed < 1 << 64:
            problems.append(f"seed is {self.seed}: must be 0 or more, and below 2**64")
        if problems:
            raise UserError(problems)


GREEDY = Sampling()

_COLDEST = 1e-20
"""Below this float32 makes 0 of a temperature."""


@final
class Chooser:
    """Chooses a token for each row.

    What a row draws is decided by the seed and the row's number in ``draws`` alone, whatever other rows there are.
    """

    def __init__(self, sampling: Sampling, draws: Sequence[int], device: torch.device) -> None:
        self._sampling = sampling
        seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        drawn = draws if sampling.temperature > 0 else ()
        self._generators = [generator(seed, draw, device) for draw in drawn]

    def __call__(self, logits: Tensor) -> Tensor:
        """The next tokens (B,) from logits (B, V), float32."""
        if not self._sampling.temperature:
            return logits.argmax(dim=-1)
        rows = zip(probabilities(logits, self._sampling), self._generators, strict=True)
        return torch.cat([torch.multinomial(row, 1, generator=own) for row, own in rows])

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with some of the rows only."""
        if self._generators:
            self._generators = [self._generators[row] for row in rows]


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """What tokens are drawn with, (B, V), from logits (B, V), float32; the temperature is above 0."""
    temperature = max(sampling.temperature, _COLDEST)
    warp: Any = LogitsProcessorList([TemperatureLogitsWarper(temperature), TopPLogitsWarper(sampling.top_p)])
    # the largest at 0: else a temperature next to nothing would make it infinite
    centred = logits - logits.amax(dim=-1, keepdim=True)
    return cast(Tensor, warp(None, centred)).softmax(dim=-1)


def generator(seed: int, draw: int, device: torch.device) -> torch.Generator:
    """The generator of one row: neighbouring numbers give unrelated draws."""
    mixed = int(np.random.SeedSequence([seed, draw]).generate_state(1, np.uint64)[0])
    return torch.Generator(device).manual_seed(mixed)
