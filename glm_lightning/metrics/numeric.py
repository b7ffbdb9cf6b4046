"""Whether the number that an answer comes to is the right one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal

from glm_lightning.metrics import Statistics, means, percent, texts
from glm_lightning.types import Message

MARK = "####"
"""What GSM8K puts in front of the result."""

_PLAIN = str.maketrans("０１２３４５６７８９．，－＋−–", "0123456789.,-+--")
# A sign behind a digit or a letter is none of the number's: 10-3, x+1.
_NUMBER = re.compile(
    r"((?<![A-Za-z0-9_)])[-+])?[$¥￥€£]?(\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)((?:[eE][-+]?\d+)?)"
)


def statistics(predictions: Sequence[Message], references: Sequence[Message]) -> Statistics:
    """Percentage of answers with the number of their reference, and of those that mark it as GSM8K does.

    The number is the first one behind the last ``####``, and where there is none the last of the text: an answer that
    marks nothing is still read. Compared by value: 1,234.50 is 1234.5. References without a number have no say.
    Source of the mark: Cobbe et al., Training Verifiers to Solve Math Word Problems, 2021 (arXiv:2110.14168).
    """
    pairs = list(zip(*texts(predictions, references), strict=True))
    wanted = [number(reference) for _, reference in pairs]
    said = [number(prediction) for prediction, _ in pairs]
    marked = [_marked(prediction) is not None for prediction, _ in pairs]
    return means(
        {
            "numeric": [None if w is None else percent(s == w) for s, w in zip(said, wanted, strict=True)],
            "numeric_marked": [None if w is None else percent(m) for m, w in zip(marked, wanted, strict=True)],
        }
    )


def fits(references: Sequence[Message]) -> bool:
    """At least half of the references mark their number, or are nothing but one."""
    found = sum(_marked(each.text) is not None or _is_number(each.text) for each in references)
    return 2 * found >= len(references) > 0


def number(text: str) -> Decimal | None:
    """The number that a text comes to; None if there is none."""
    marked = _marked(text)
    return marked if marked is not None else _value((_numbers(text) or [None])[-1])


def _marked(text: str) -> Decimal | None:
    """The first number behind the last mark."""
    _, mark, rest = text.rpartition(MARK)
    return _value((_numbers(rest) or [None])[0]) if mark else None


def _numbers(text: str) -> list[re.Match[str] | None]:
    return list(_NUMBER.finditer(text.translate(_PLAIN)))


def _value(found: re.Match[str] | None) -> Decimal | None:
    if found is None:
        return None
    value = Decimal(found[2].replace(",", "") + found[3])
    return value.copy_negate() if found[1] == "-" else value


def _is_number(text: str) -> bool:
    return bool(_NUMBER.fullmatch(text.strip().translate(_PLAIN)))
