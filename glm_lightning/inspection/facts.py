"""The facts: plain values, as ``--json`` prints them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from glm_lightning.data.dataset import Dataset
from glm_lightning.data.gate import num_bad
from glm_lightning.data.plan import Plan, padded_lengths
from glm_lightning.inspection.languages import language
from glm_lightning.tokenizers import Tokenizer

_TEXTS_READ = 1000
_STEPS_LOOKED_AT = 500
_BINS = 24
_ROUND = 64
_KEPT = 0.99


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A length, and why."""

    max_length: int
    reason: str


def facts_of(part: Dataset, *, tokenizer: Tokenizer) -> dict[str, Any]:
    """What one part of the data is."""
    whole = whole_lengths(part)
    tokens, cut, cut_learned = int(part.lengths.sum()), part.numbers("cut"), part.numbers("cut_learned")
    learned = int(part.num_supervised.sum())
    turns = part.numbers("turns")
    return {
        "files": [str(file) for file in part.files],
        "rows": part.num_rows,
        "bad_rows": num_bad(part.refused),
        "samples": len(part),
        "turns_per_sample": {"mean": round(float(turns.mean()), 2), "max": int(turns.max())},
        "languages": _languages(part, part.first_of_rows, tokenizer),
        "lengths": _distribution(whole),
        "histogram": _histogram(whole),
        "tokens": tokens,
        "learned_share": round(learned / max(tokens, 1), 4),
        "truncated": {
            "samples": part.num_truncated,
            "share": round(part.num_truncated / max(len(part), 1), 4),
            "tokens_cut": int(cut.sum()),
            "learned_tokens_cut": int(cut_learned.sum()),
            "answers_cut": int((cut_learned > 0).sum()),
        },
    }


def whole_lengths(part: Dataset) -> npt.NDArray[np.int64]:
    """Tokens of each sample before anything was cut, of a pair at least those of its longer side. Shape (samples,)."""
    return part.widths.astype(np.int64) + part.numbers("cut")


def plan_facts(plan: Plan) -> dict[str, Any]:
    """Steps of an epoch, and how much of the positions is padding, by the epoch's first steps."""
    real = padded = 0
    for index, micro_batch in enumerate(plan.micro_batches(0)):
        if index >= _STEPS_LOOKED_AT * plan.accumulate:
            break
        lengths = np.array([plan.lengths[list(row)].sum() for row in micro_batch.rows], np.int32)
        if len(lengths):
            real += int(lengths.sum())
            padded += int(padded_lengths(lengths, plan.pad_to_multiple).max()) * len(lengths)
    return {
        "batch_size": plan.batch_size,
        "steps_per_epoch": plan.num_steps,
        "micro_batches_per_step": plan.accumulate,
        "max_tokens": plan.max_tokens,
        "padding_share": round(1 - real / max(padded, 1), 4),
    }


def suggestion(part: Dataset, *, max_length: int, context: int | None) -> Suggestion:
    """The length, a multiple of 64, at which at least 99 % of the samples stay whole.

    Args:
        part: the training samples.
        max_length: the length at present.
        context: positions that the network was made for, which is the most that is suggested; None: not known.
    """
    whole = whole_lengths(part)
    wished = int(np.quantile(whole, _KEPT, method="higher"))
    wished = max(_ROUND, -(-wished // _ROUND) * _ROUND)
    length = wished if context is None else min(wished, context)
    kept, longest = float((whole <= length).mean()), int(whole.max())
    if longest <= max_length and length == max_length:
        return Suggestion(length, f"every sample fits; the longest has {longest:,} tokens")
    lost = int(np.maximum(whole - length, 0).sum()) / max(int(whole.sum()), 1)
    at_present = float((whole <= max_length).mean())
    limit = f"more than the {length:,} positions of the network would be needed; " if length < wished else ""
    reason = (
        f"{limit}{kept:.1%} of the samples stay whole and {lost:.1%} of the tokens are cut; "
        f"at {max_length:,} it is {at_present:.1%} of the samples; the longest has {longest:,} tokens"
    )
    return Suggestion(length, reason)


def _distribution(lengths: npt.NDArray[np.int64]) -> dict[str, int]:
    shares = {"min": 0.0, "p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "max": 1.0}
    values = {name: int(np.quantile(lengths, share, method="higher")) for name, share in shares.items()}
    return {**values, "mean": round(float(lengths.mean()))}


def _histogram(lengths: npt.NDArray[np.int64]) -> list[dict[str, int]]:
    """Counts by length in steps of one width; what is longer than the 99.5 % quantile shares the last."""
    top = max(int(np.quantile(lengths, 0.995)), 1)
    width = -(-top // _BINS)
    numbers = np.minimum((lengths - 1) // width, _BINS)
    counts = np.bincount(np.maximum(numbers, 0), minlength=1)
    last = int(lengths.max())
    return [
        {"from": i * width + 1, "to": last if i == _BINS else (i + 1) * width, "samples": int(count)}
        for i, count in enumerate(counts)
    ]


def _languages(part: Dataset, firsts: npt.NDArray[np.int64], tokenizer: Tokenizer) -> dict[str, Any]:
    """Shares of languages among rows that are spread evenly over the part."""
    chosen = firsts[np.linspace(0, len(firsts) - 1, min(len(firsts), _TEXTS_READ)).astype(int)]
    found = Counter(language(tokenizer.decode(part.sample(int(index)).input_ids)) for index in chosen)
    return {**{name: round(found[name] / len(chosen), 4) for name in ("zh", "en", "other")}, "rows_read": len(chosen)}
