"""What turns text into ids and back for an official file: its makers' library, or one that does the same."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import final

from glm_lightning.tokenizers.release import Release
from glm_lightning.tokenizers.whitespace import spelled, unspelled
from glm_lightning.types import UserError


class Engine(ABC):
    """Text to ids and back for one file, which knows nothing of the control tokens behind its ids."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Number of ids in the file."""

    @property
    @abstractmethod
    def controls(self) -> Mapping[str, int]:
        """Control tokens that are part of the file."""

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, with all threads."""

    @abstractmethod
    def decode(self, ids: list[int]) -> str:
        """Text of ``ids``, all of them below `size`."""


@final
class PieceEngine(Engine):
    """sentencepiece itself, for ChatGLM-6B, ChatGLM2 and ChatGLM3.

    A fast tokenizer cannot take its place for ChatGLM-6B (see `glm_lightning.tokenizers.conversion`), and for all
    three it would decode broken bytes differently, be slower, and take a second to make.
    """

    def __init__(self, release: Release) -> None:
        from sentencepiece import SentencePieceProcessor

        self._spells = release.generation == "chatglm"
        try:
            self._pieces = SentencePieceProcessor(str(release.file))
        except (RuntimeError, OSError) as error:
            raise UserError(
                f"{release.file}: is no sentencepiece file; fetch it again (if it is a few lines of text that point to "
                "the real file: git lfs pull)"
            ) from error

    @property
    def size(self) -> int:
        """Number of pieces."""
        return self._pieces.GetPieceSize()

    @property
    def controls(self) -> Mapping[str, int]:
        """The pieces of the kinds control and unknown."""
        ids = [i for i in range(self.size) if self._pieces.IsControl(i) or self._pieces.IsUnknown(i)]
        return {self._pieces.IdToPiece(i): i for i in ids}

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text; of ChatGLM-6B with white space spelled its way."""
        prepared = [spelled(text) for text in texts] if self._spells else list(texts)
        return list(self._pieces.Encode(prepared))

    def decode(self, ids: list[int]) -> str:
        """Text of ``ids``, without the blank that stands in front of every text."""
        text = str(self._pieces.Decode(ids))
        return unspelled(text) if self._spells else text


@final
class RankEngine(Engine):
    """A fast tokenizer made from GLM-4's ranks: the same ids and text as tiktoken on every string tried."""

    def __init__(self, release: Release) -> None:
        from glm_lightning.tokenizers.ranks import backend

        self._backend = backend(release.file)

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self._backend.get_vocab_size()

    @property
    def controls(self) -> Mapping[str, int]:
        """None: all are behind the ranks."""
        return {}

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text."""
        return [encoding.ids for encoding in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: list[int]) -> str:
        """Text of ``ids``; broken bytes are shown as U+FFFD."""
        return str(self._backend.decode(ids))
