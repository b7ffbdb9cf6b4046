"""Names of control tokens in texts: harmless, as text never becomes a control token, but seldom meant."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from typing import final

from glm_lightning.data.judging.base import Rule, Texts
from glm_lightning.data.judging.kinds import Kind


@final
class ControlToken(Rule):
    """The name of one of the tokenizer's control tokens, such as ``<|user|>``."""

    kind = Kind("control_token", "notice", "hold the name of a control token, which is read as text")

    def find(self, texts: Texts, *, controls: Mapping[str, int]) -> Iterator[tuple[int, str]]:
        """See `Rule.find`."""
        seen = -1
        for match in _pattern(tuple(controls)).finditer(texts.whole):
            row = texts.row(match.start())
            if row != seen:
                seen = row
                yield row, f"holds {match[0]!r}, the name of a control token, in {texts.around(match.start())}"


@functools.cache
def _pattern(names: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or r"(?!)")
