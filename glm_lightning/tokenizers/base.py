"""The one interface over every kind of tokenizer file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from glm_lightning.types import UserError


class Tokenizer(ABC):
    """Text to ids and back, with control tokens (`<|user|>`, `</s>`, ...) reachable by name only.

    No text can become a control token: `encode` treats ``"<|user|>"`` as seven characters like any others. Control
    tokens come from `control_id`.
    """

    @property
    @abstractmethod
    def hf(self) -> Any:
        """A transformers fast tokenizer of the same ids, for what other libraries want of it."""

    @property
    @abstractmethod
    def controls(self) -> Mapping[str, int]:
        """Name and id of every control token."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Changes when the ids of any text or control token may change."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of ids, control tokens included. The model's embedding may have more rows."""

    @property
    @abstractmethod
    def pad_id(self) -> int:
        """Id for positions that nothing looks at: the pad token, else the end token, else 0."""

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text as data: no control token comes out, none is added. Uses all threads for many texts."""

    @abstractmethod
    def decode(self, ids: Sequence[int], *, control: bool = False) -> str:
        """Text of ``ids``; control tokens are left out, or shown by name with ``control=True``."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the files that `load` and transformers read; the official file among them, where there is one."""

    @abstractmethod
    def save_official(self, folder: Path) -> None:
        """Write the files in the layout of the official release, as the code of its makers wants them.

        Raises:
            UserError: the tokenizer was not read from such files.
        """

    def control_id(self, name: str) -> int:
        """Id of the control token ``name``.

        Raises:
            UserError: the tokenizer has no such control token.
        """
        if name not in self.controls:
            raise UserError(
                f"tokenizer: no control token {name!r}; it has {', '.join(sorted(self.controls)) or 'none'}. "
                "Use the tokenizer that belongs to the model, or another template"
            )
        return self.controls[name]
