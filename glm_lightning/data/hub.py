"""Data sets of Hugging Face and ModelScope, through the library `datasets`, as Arrow files in its cache."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, final

from glm_lightning.types import UserError

_NAME = re.compile(
    r"(?P<hub>hf|ms):(?P<name>[\w.-]+/[\w.-]+|/[^:@]+|\.{1,2}/[^:@]+)"
    r"(?:/(?P<subset>[\w.-]+))?(?:@(?P<revision>[^:@]+))?(?::(?P<split>[\w.-]+))?"
)
_EXAMPLE = "hf:owner/name:train, hf:owner/name/subset@revision:validation, or ms:owner/name:train"


@final
@dataclass(frozen=True, slots=True)
class HubName:
    """A data set on a hub: ``hf:owner/name/subset@revision:split``, all but the name optional."""

    hub: str
    name: str
    subset: str | None
    revision: str | None
    split: str

    @classmethod
    def of(cls, entry: str, *, key: str) -> Self | None:
        """Read an entry of yaml; None for what is no hub's name.

        Raises:
            UserError: it begins like one and is not.
        """
        if not entry.startswith(("hf:", "ms:")):
            return None
        found = _NAME.fullmatch(entry)
        if found is None:
            raise UserError(f"{key} is {entry!r}: must be {_EXAMPLE}")
        return cls(found["hub"], found["name"], found["subset"], found["revision"], found["split"] or "train")

    def check(self, *, key: str) -> None:
        """Raise `UserError` if the libraries that fetch it are not installed."""
        needed = ["datasets"] if self.hub == "hf" else ["modelscope", "datasets"]
        missing = [name for name in needed if importlib.util.find_spec(name) is None]
        if missing:
            names = " ".join(missing)
            raise UserError(f"{key} is {self}: needs the package {names}, which is not installed: pip install {names}")

    def fetch(self, *, key: str) -> list[Path]:
        """Download it, unless that was done before, and return its Arrow files.

        Raises:
            UserError: it cannot be had.
        """
        self.check(key=key)
        try:
            files = _arrow_files(self._loaded())
        except Exception as error:
            # the libraries raise errors of their own, of their network layers and of builders
            first = (str(error) or type(error).__name__).strip().splitlines()[0]
            raise UserError(
                f"{key} is {self}: cannot be had ({type(error).__name__}: {first}); check name, subset, split and "
                "network, or give files: data.train=folder"
            ) from error
        if not files:
            raise UserError(f"{key} is {self}: has no rows")
        return files

    def _loaded(self) -> Any:
        from datasets import load_dataset

        if self.hub == "hf":
            return load_dataset(self.name, self.subset, revision=self.revision, split=self.split)
        from modelscope import dataset_snapshot_download

        folder = dataset_snapshot_download(self.name, revision=self.revision)
        return load_dataset(str(folder), self.subset, split=self.split)

    def __str__(self) -> str:
        subset = f"/{self.subset}" if self.subset else ""
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.hub}:{self.name}{subset}{revision}:{self.split}"


def _arrow_files(dataset: Any) -> list[Path]:
    return [Path(file["filename"]) for file in dataset.cache_files]
