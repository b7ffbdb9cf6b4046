"""GLM-4's file of tokens and ranks (the format of tiktoken) as a byte-level tokenizer of `tokenizers`.

tiktoken joins the pair of tokens that makes the token of the lowest rank, `tokenizers` the pair that stands first in a
list of pairs: the list is all pairs that make a token, in the order of what they make.
"""

from __future__ import annotations

import binascii
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from glm_lightning.types import UserError

Token = TypeVar("Token", str, bytes)

# official tokenization_chatglm.py of GLM-4-9B
_WORDS = "|".join(
    [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)


def backend(file: Path) -> Tokenizer:
    """The tokenizer of a file of ranks, without control tokens; the same ids and text as tiktoken's.

    Raises:
        UserError: the file is of another kind.
    """
    ranks = _read(file)
    letters = _byte_letters()
    names = {token: token.decode("latin-1").translate(letters) for token in ranks}
    by_rank = sorted(ranks, key=ranks.__getitem__)
    pairs = [(names[left], names[right]) for left, right in merges(by_rank, ranks)]
    made = Tokenizer(models.BPE({names[token]: ranks[token] for token in by_rank}, pairs, ignore_merges=True))
    words = pre_tokenizers.Split(Regex(_WORDS), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([words, byte_level])
    made.decoder = decoders.ByteLevel()
    return made


def _read(file: Path) -> dict[bytes, int]:
    try:
        rows = (line.split() for line in file.read_bytes().splitlines() if line)
        return {binascii.a2b_base64(token, strict_mode=True): int(rank) for token, rank in rows}
    except ValueError as error:
        raise UserError(f"{file}: is no file of tokens and ranks: {error}; fetch it again") from error


def _byte_letters() -> dict[int, int]:
    """The letter by which byte-level tokenizers write each byte (GPT-2): itself where it is printable."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: 256 + n for n, byte in enumerate(others)}


def merges(tokens: Iterable[Token], ranks: Mapping[Token, int]) -> list[tuple[Token, Token]]:
    """All pairs of tokens that make one of ``tokens``, in the order of what they make and then of their ranks."""
    found = []
    for token in tokens:
        cuts = [(token[:i], token[i:]) for i in range(1, len(token))]
        pairs = [(left, right) for left, right in cuts if left in ranks and right in ranks]
        if len(pairs) > 1:
            pairs.sort(key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        found += pairs
    return found
