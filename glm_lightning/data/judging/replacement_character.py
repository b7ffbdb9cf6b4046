"""U+FFFD in texts: a character was lost when the text was once decoded wrongly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import final

import numpy as np

from glm_lightning.data.judging.base import Rule, Texts, first_of_each_row
from glm_lightning.data.judging.kinds import Kind


@final
class ReplacementCharacter(Rule):
    """U+FFFD, which decoders put where bytes made no sense."""

    kind = Kind("replacement_character", "notice", "hold a replacement character (U+FFFD)")

    def find(self, texts: Texts, *, controls: Mapping[str, int]) -> Iterator[tuple[int, str]]:
        """See `Rule.find`."""
        positions = np.flatnonzero(texts.codes == 0xFFFD)
        for row, (position, count) in first_of_each_row(texts, positions).items():
            yield row, f"holds U+FFFD ({count} such), so a character was lost: {texts.around(position)}; restore it"
