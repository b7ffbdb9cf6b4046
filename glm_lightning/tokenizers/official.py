"""The tokenizers of official releases: their files as they are, and the control tokens that their code adds."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, final

from glm_lightning.files import digest, fingerprint
from glm_lightning.tokenizers.base import Tokenizer
from glm_lightning.tokenizers.engines import PieceEngine, RankEngine
from glm_lightning.tokenizers.release import ROLES, Release


@final
class OfficialTokenizer(Tokenizer):
    """ChatGLM-6B, ChatGLM2, ChatGLM3 or GLM-4-9B: ids and text equal the official tokenizers' on every string."""

    def __init__(self, release: Release) -> None:
        """Read the file of ``release``.

        Raises:
            UserError: it is broken.
        """
        self._release = release
        self._engine = RankEngine(release) if release.generation == "glm4" else PieceEngine(release)
        self._size = self._engine.size
        self._controls = {**self._engine.controls, **release.appended(self._size)}
        self._names = {i: name for name, i in self._controls.items()}

    @cached_property
    def hf(self) -> Any:
        """A fast tokenizer made from the same file; names of control tokens in a text are control tokens for it."""
        # transformers takes seconds to import
        from glm_lightning.tokenizers.conversion import fast

        return fast(self._release)

    @property
    def controls(self) -> Mapping[str, int]:
        """What the file calls control and unknown, and the tokens behind it."""
        return self._controls

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the file, of the generation and of the control tokens."""
        return digest(self._release.generation, fingerprint(self._release.file), sorted(self._controls.items()))

    @property
    def vocab_size(self) -> int:
        """Ids of the file and the control tokens behind them."""
        return self._size + sum(i >= self._size for i in self._names)

    @property
    def pad_id(self) -> int:
        """Id of `<pad>` (ChatGLM-6B), `<unk>` (ChatGLM2 and 3) or `<|endoftext|>` (GLM-4)."""
        return self._controls[ROLES[self._release.generation]["pad_token"]]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text as data; see `Tokenizer.encode`."""
        return self._engine.encode(texts)

    def decode(self, ids: Sequence[int], *, control: bool = False) -> str:
        """Text of ``ids``, each run between control tokens on its own; ids that nothing has have no text."""
        out = []
        for named, run in groupby(ids, key=self._names.__contains__):
            if not named:
                out.append(self._engine.decode([i for i in run if i < self._size]))
            elif control:
                out += [self._names[i] for i in run]
        return "".join(out)

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json` for transformers, and the official file for `load`."""
        self.hf.save_pretrained(folder)
        shutil.copyfile(self._release.file, folder / self._release.file.name)
        self._release.mark(folder)

    def save_official(self, folder: Path) -> None:
        """Write the official file with a tokenizer_config.json for the official code."""
        self._release.write(folder)
