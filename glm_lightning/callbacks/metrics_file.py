"""Metrics as lines of JSON."""

from __future__ import annotations

import json
import math
import time
from argparse import Namespace
from pathlib import Path
from typing import Any, final

import numpy as np
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only


@final
class JsonLines(Logger):
    """Appends one line to ``path`` for each set of metrics: ``{"step": ..., "time": ..., metric: value, ...}``.

    ``time`` is in seconds since 1970. A value that is not finite is the string "nan", "inf" or "-inf", as JSON has no
    number for it. A resumed run continues the file: where a step is there twice, the later line holds.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self._path = Path(path)

    @property
    def name(self) -> str:
        """Lightning's name for what is logged: the file's."""
        return self._path.stem

    @property
    def version(self) -> str:
        """Empty: a file is one run's."""
        return ""

    @property
    def save_dir(self) -> str:
        """The folder of the file."""
        return str(self._path.parent)

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append one line. The file is closed after it, so that whoever reads along sees it at once."""
        line = {"step": step, "time": round(time.time(), 3)} | {name: _value(value) for name, value in metrics.items()}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run folder holds the whole config."""


def _value(value: float) -> float | str:
    if isinstance(value, int):
        return value
    if not math.isfinite(value):
        return str(value)
    # Lightning keeps metrics in float32: 0.001, not 0.0010000000474974513, and still the same float32 when read back.
    with np.errstate(over="ignore"):
        single = np.float32(value)
    return float(str(single)) if float(single) == value else value
