"""Reasoning written into an answer's text, between `<think>` and `</think>`."""

from __future__ import annotations

from dataclasses import replace

from glm_lightning.templates.base import without_beginning_of
from glm_lightning.types import Message

OPEN, CLOSE = "<think>", "</think>"


def split(text: str, *, opened: bool) -> tuple[str | None, str]:
    """Reasoning (None if there is none) and what follows it.

    Text counts as reasoning behind a `<think>` at its beginning, or from its beginning on where the prompt has
    ``opened`` the reasoning already. Reasoning that never ends is all there is.
    """
    start = text.lstrip()
    if not (opened or start.startswith(OPEN)):
        return None, text
    reasoning, _, rest = start.removeprefix(OPEN).partition(CLOSE)
    return reasoning.strip() or None, rest


def settled(text: str, *, opened: bool) -> tuple[str | None, str | None]:
    """What `split` will say of a text that goes on: reasoning so far, and what follows; None where it is not known yet.

    As long as the reasoning is not closed nothing follows it.
    """
    start = text.lstrip()
    if OPEN.startswith(start):
        return None, None
    if not (opened or start.startswith(OPEN)):
        return None, text
    reasoning, closed, rest = start.removeprefix(OPEN).partition(CLOSE)
    if closed:
        return reasoning.strip(), rest
    return without_beginning_of(reasoning, CLOSE).strip(), None


def extracted(message: Message) -> Message:
    """An answer with the reasoning that its content begins with, `<think>...</think>`, in its place."""
    if message.role != "assistant" or message.reasoning is not None:
        return message
    if not message.content.lstrip().startswith(OPEN) or CLOSE not in message.content:
        return message
    reasoning, content = split(message.content, opened=False)
    return replace(message, reasoning=reasoning, content=content.lstrip("\n"))
