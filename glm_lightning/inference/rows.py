"""One answer on its way: what it is asked, how its tokens are chosen, and who hears them."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal, NamedTuple, Protocol, final

import torch
from torch import Tensor

from glm_lightning.inference.sampling import Sampling, generator, probabilities


class Token(NamedTuple):
    """A token of an answer, and what the network thought of it if that was asked for (natural logarithms)."""

    id: int
    logprob: float | None = None
    likeliest: tuple[tuple[int, float], ...] = ()


class Listener(Protocol):
    """Who hears an answer. All is called by the thread that makes the tokens."""

    def hear(self, token: Token) -> bool:
        """Take the next token; whether there shall be more."""

    def end(self, reason: Literal["stop", "length"]) -> None:
        """There will be no more: a stop token came (which is not heard), or the answer is as long as it may be."""

    def fail(self, error: Exception) -> None:
        """There will be no more, for the answer cannot be gone on with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighting:
    """What is added to the logits of a row: OpenAI's penalties of what was said, and its bias by token."""

    frequency: float = 0.0
    presence: float = 0.0
    bias: Mapping[int, float] = field(default_factory=dict)


@final
class Row:
    """An answer that is asked for.

    Args:
        prompt_ids: what it answers.
        listener: who hears it.
        max_new_tokens: its longest, in tokens.
        stop_ids: tokens that end it.
        sampling: how it is drawn.
        draw: the number by which it draws its own (`glm_lightning.inference.sampling`).
        weighting: what is added to its logits, if anything.
        num_logprobs: how many of the likeliest tokens to tell with each; None: no logarithm at all.
    """

    def __init__(
        self,
        prompt_ids: Sequence[int],
        listener: Listener,
        *,
        max_new_tokens: int,
        stop_ids: Collection[int],
        sampling: Sampling,
        draw: int = 0,
        weighting: Weighting | None = None,
        num_logprobs: int | None = None,
    ) -> None:
        self.prompt_ids = list(prompt_ids)
        self.listener = listener
        self.max_new_tokens = max_new_tokens
        self.sampling = sampling
        self.num_logprobs = num_logprobs
        self.is_gone = False
        self._stop_ids = frozenset(stop_ids)
        self._weighting = weighting
        self._said: Counter[int] = Counter()
        self._seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        self._draw = draw
        self._generator: torch.Generator | None = None

    @property
    def num_tokens(self) -> int:
        """The most tokens that it may have, prompt and answer."""
        return len(self.prompt_ids) + self.max_new_tokens

    def draw(self, chances: Tensor) -> Tensor:
        """A token (1,) with these probabilities (V,), from the row's own generator."""
        if self._generator is None:
            self._generator = generator(self._seed, self._draw, chances.device)
        return torch.multinomial(chances, 1, generator=self._generator)

    def leave(self) -> None:
        """Nobody wants the rest of it; whoever makes the tokens notices before the next one."""
        self.is_gone = True

    def take(self, token: Token) -> bool:
        """Let it be heard; whether it goes on."""
        if token.id in self._stop_ids:
            self.listener.end("stop")
            return False
        self._said[token.id] += 1
        if not self.listener.hear(token):
            return False
        if self._said.total() >= self.max_new_tokens:
            self.listener.end("length")
            return False
        return True

    @property
    def is_weighted(self) -> bool:
        """Whether `weigh` changes anything."""
        return self._weighting is not None

    def weigh(self, logits: Tensor) -> Tensor:
        """The row's logits (V,) with what is added to them."""
        weighting = self._weighting
        assert weighting is not None
        added = dict(weighting.bias)
        for token, count in self._said.items():
            added[token] = added.get(token, 0.0) - weighting.presence - weighting.frequency * count
        if not added:
            return logits
        places = torch.tensor(list(added), device=logits.device)
        values = torch.tensor(list(added.values()), device=logits.device, dtype=logits.dtype)
        return logits.index_add(0, places, values)


def choose(logits: Tensor, rows: Sequence[Row]) -> list[Token | None]:
    """The next token of each row from logits (B, V), float32; None where a row's logits are no numbers."""
    weighted = [row.weigh(own) if row.is_weighted else own for row, own in zip(rows, logits, strict=True)]
    chosen_from = torch.stack(weighted) if any(row.is_weighted for row in rows) else logits
    likeliest = chosen_from.argmax(dim=-1)
    is_sound = logits.gather(1, likeliest[:, None])[:, 0].isfinite().tolist()
    tokens = likeliest.tolist()
    drawing = [i for i, row in enumerate(rows) if row.sampling.temperature > 0 and is_sound[i]]
    for place, token in zip(drawing, _drawn(chosen_from, [(i, rows[i]) for i in drawing]), strict=True):
        tokens[place] = token
    logprobs = _logprobs(logits, tokens, rows)
    return [
        (logprobs.get(i) or Token(token)) if sound else None
        for i, (token, sound) in enumerate(zip(tokens, is_sound, strict=True))
    ]


def _drawn(logits: Tensor, rows: Sequence[tuple[int, Row]]) -> list[int]:
    """Tokens in the order of ``rows``; those that are drawn alike share the work on the vocabulary."""
    drawn: dict[int, Tensor] = {}
    by_manner = sorted(rows, key=lambda each: _manner(each[1]))
    for _, group in groupby(by_manner, key=lambda each: _manner(each[1])):
        alike = list(group)
        chances = probabilities(logits[[place for place, _ in alike]], alike[0][1].sampling)
        for (place, row), own in zip(alike, chances, strict=True):
            drawn[place] = row.draw(own)
    return torch.cat([drawn[place] for place, _ in rows]).tolist() if rows else []


def _manner(row: Row) -> tuple[float, float]:
    return row.sampling.temperature, row.sampling.top_p


def _logprobs(logits: Tensor, tokens: Sequence[int], rows: Sequence[Row]) -> dict[int, Token]:
    """Tokens with their logarithms, of the rows that ask for them."""
    asking = [i for i, row in enumerate(rows) if row.num_logprobs is not None]
    if not asking:
        return {}
    logarithms = logits[asking].log_softmax(dim=-1)
    most = max(rows[i].num_logprobs or 0 for i in asking)
    values, ids = logarithms.topk(min(most, logarithms.shape[1]), dim=-1)
    told = {}
    for place, own, best, best_ids in zip(asking, logarithms, values.tolist(), ids.tolist(), strict=True):
        pairs = list(zip(best_ids, best, strict=True))[: rows[place].num_logprobs]
        told[place] = Token(tokens[place], float(own[tokens[place]]), tuple(pairs))
    return told
