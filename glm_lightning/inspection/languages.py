"""Which language a text is in, by its script."""

from __future__ import annotations

import re
from typing import Literal

Language = Literal["zh", "en", "other"]

_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003134f]")
_LATIN = re.compile("[A-Za-z]+")
_FOREIGN = re.compile("[\u0370-\u1fff\u3040-\u30ff\uac00-\ud7a3]")
"""Greek to Mongolian, kana, hangul: letters that neither Chinese nor English is written in."""


def language(text: str) -> Language:
    """``zh`` or ``en`` by what there is more of, Chinese characters or words of Latin letters.

    ``other`` where letters of other scripts are at least as many as the two together, and where there are no letters.
    """
    han, latin, foreign = (len(pattern.findall(text)) for pattern in (_HAN, _LATIN, _FOREIGN))
    if foreign >= han + latin:
        return "other"
    return "zh" if han >= latin else "en"
