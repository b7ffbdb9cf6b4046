"""How far one distribution over the next token is from another, and the few events of it that a cache keeps."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

Divergence = Literal["forward_kl", "reverse_kl", "jensen_shannon"]
DIVERGENCES: tuple[Divergence, ...] = get_args(Divergence)

_LEAST = -1e4
"""Log-probabilities below this are this: as probabilities they are 0 in any type, and 0 times them is 0."""


def divergence(teacher: Tensor, student: Tensor, *, kind: Divergence, weight: float = 0.5) -> Tensor:
    """Divergence (N,) in nats of distributions that are given by their log-probabilities (N, E) over the same events.

    With p the teacher's and q the student's: ``forward_kl`` is KL(p || q), which covers all that the teacher may say;
    ``reverse_kl`` is KL(q || p), which keeps to what the teacher finds likely; ``jensen_shannon`` with its ``weight`` w
    is w KL(p || m) + (1 - w) KL(q || m), m = w p + (1 - w) q (Agarwal et al. 2023, arXiv:2306.13649, equation 1).
    """
    teacher, student = teacher.clamp(min=_LEAST), student.clamp(min=_LEAST)
    p, q = teacher.exp(), student.exp()
    if kind == "forward_kl":
        return (p * (teacher - student)).sum(-1)
    if kind == "reverse_kl":
        return (q * (student - teacher)).sum(-1)
    middle = (weight * p + (1 - weight) * q).clamp(min=torch.finfo(p.dtype).tiny).log()
    return weight * (p * (teacher - middle)).sum(-1) + (1 - weight) * (q * (student - middle)).sum(-1)


class Likeliest(NamedTuple):
    """The ``k`` likeliest tokens of a distribution, and the mass that all others have together."""

    ids: Tensor  # (N, k) int32
    log_probs: Tensor  # (N, k)
    rest: Tensor  # (N,) log of the others' mass; -inf where there are no others


def likeliest(log_probs: Tensor, k: int) -> Likeliest:
    """Of log-probabilities (N, V); k of the vocabulary or more keeps all of it."""
    found = log_probs.topk(min(k, log_probs.shape[-1]))
    return Likeliest(found.indices.int(), found.values, _mass_of_others(log_probs, found.indices))


def events(log_probs: Tensor, kept: Likeliest) -> tuple[Tensor, Tensor]:
    """Log-probabilities (N, k + 1) of the same events by ``kept`` and by ``log_probs`` (N, V): each of the k tokens,
    and any other. Where ``kept`` is the whole vocabulary, there is no other, and the events are V.

    No divergence over fewer events is larger than that over all tokens.
    """
    ids = kept.ids.long()
    teacher, student = kept.log_probs.to(log_probs.dtype), log_probs.gather(-1, ids)
    if ids.shape[-1] == log_probs.shape[-1]:
        return teacher, student
    others = _mass_of_others(log_probs, ids)
    return (
        torch.cat([teacher, kept.rest.to(log_probs.dtype)[..., None]], -1),
        torch.cat([student, others[..., None]], -1),
    )


def _mass_of_others(log_probs: Tensor, ids: Tensor) -> Tensor:
    # Summed over the others themselves: 1 - (sum over the likeliest) would round away what is small.
    return log_probs.scatter(-1, ids, float("-inf")).logsumexp(-1)
