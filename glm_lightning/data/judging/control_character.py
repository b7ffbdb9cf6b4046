"""Control characters in texts: they teach nothing, and show that something went wrong on the way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import final

import numpy as np

from glm_lightning.data.judging.base import Rule, Texts, first_of_each_row
from glm_lightning.data.judging.kinds import Kind

_MEANT = np.array([9, 10, 13], dtype=np.uint32)  # tab, newline, carriage return


@final
class ControlCharacter(Rule):
    """C0 and C1 control characters other than tab, newline and carriage return (Unicode category Cc)."""

    kind = Kind("control_character", "notice", "hold control characters")

    def find(self, texts: Texts, *, controls: Mapping[str, int]) -> Iterator[tuple[int, str]]:
        """See `Rule.find`."""
        codes = texts.codes
        low = (codes < 32) | ((codes >= 127) & (codes < 160))
        positions = np.flatnonzero(low)
        positions = positions[~np.isin(codes[positions], _MEANT)]
        for row, (position, count) in first_of_each_row(texts, positions).items():
            yield (
                row,
                f"holds the control character U+{codes[position]:04X} "
                f"({count} such) in {texts.around(position)}; remove it",
            )
