"""The embedded default: a tiny pretrained GLM, its data, and the recipe that made both.

``MODEL`` and ``DATA`` are the folders that travel with the package; ``python -m glm_lightning.demo.build`` makes them.
"""

from __future__ import annotations

from pathlib import Path

MODEL = Path(__file__).parent / "model"
DATA = Path(__file__).parent / "data"
