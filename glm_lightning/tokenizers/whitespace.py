"""How ChatGLM-6B writes white space: a newline, a tab and each run of blanks are a piece of its vocabulary.

Source: `SPTokenizer` of the official `tokenization_chatglm.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

MAX_BLANKS = 80

PIECES: Mapping[str, str] = {
    "<n>": "\n",
    "<|tab|>": "\t",
    **{f"<|blank_{n}|>": " " * n for n in range(MAX_BLANKS, 1, -1)},
}
"""The white space that each piece stands for, the longest run first."""

_BLANKS = re.compile(" {2,}")
_PIECE = re.compile("|".join(map(re.escape, PIECES)))


def spelled(text: str) -> str:
    """``text`` with pieces for white space; a long run of blanks is cut from its left. A single blank stays."""
    text = text.replace("\n", "<n>").replace("\t", "<|tab|>")
    return _BLANKS.sub(lambda run: _run(len(run[0])), text)


def unspelled(text: str) -> str:
    """``text`` with the white space that its pieces stand for."""
    return _PIECE.sub(lambda piece: PIECES[piece[0]], text)


def _run(length: int) -> str:
    whole, rest = divmod(length, MAX_BLANKS)
    return f"<|blank_{MAX_BLANKS}|>" * whole + (f"<|blank_{rest}|>" if rest > 1 else " " * rest)
