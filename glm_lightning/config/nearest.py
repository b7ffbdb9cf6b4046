"""The existing names that look most like what was typed."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher

_ALIKE = 0.6
"""difflib's own cutoff for a close match."""


def by_likeness(name: str, existing: Iterable[str]) -> list[str]:
    """All existing names, the most alike first."""
    return sorted(set(existing), key=lambda other: (-_likeness(name, other), -_ratio(name, other), other))


def nearest(name: str, existing: Iterable[str], *, count: int = 3) -> list[str]:
    """At most ``count`` existing names that are alike, the most alike first."""
    return [other for other in by_likeness(name, existing) if _likeness(name, other) >= _ALIKE][:count]


def hint(name: str, existing: Iterable[str]) -> str:
    """``; nearest: ...`` to put behind a message, or nothing."""
    names = nearest(name, existing)
    return f"; nearest: {', '.join(names)}" if names else ""


def _likeness(name: str, other: str) -> float:
    """Of the last parts: a key may have been typed without its group, and keys of one group share their beginning."""
    return _ratio(name.rpartition(".")[2], other.rpartition(".")[2])


def _ratio(name: str, other: str) -> float:
    return SequenceMatcher(None, name, other).ratio()
