"""Fine-tune ChatGLM and GLM models with PyTorch Lightning and Hydra.

Nothing heavy is imported until it is used.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glm_lightning.inference.loading import GLM
    from glm_lightning.training import Run

__all__ = ["load", "train"]
__version__ = "0.1.0"

# While it is imported it asks, on some CPUs, for a package that would fetch code from a hub.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def load(source: Any, **options: Any) -> GLM:
    """Load a finished run, an adapter, a model folder, a name on the hub, or ``"demo"``, ready to answer.

    `glm_lightning.inference.loading.load` tells of the options: ``dtype``, ``quantize``, ``adapter``, ``device`` and
    ``hub``.
    """
    from glm_lightning.inference import loading

    return loading.load(source, **options)


def train(overrides: Sequence[str] = ()) -> Run:
    """Fine-tune as ``python train.py`` does with these overrides: ``train(["method=full", "optimizer.lr=1e-4"])``."""
    from glm_lightning import config, training

    return training.run(config.compose(list(overrides)), overrides=list(overrides))
