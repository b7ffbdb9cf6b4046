"""Ask a model what a data set asks, and score its answers."""

from glm_lightning.evaluation.answers import Record
from glm_lightning.evaluation.scoring import Scores, Share, score
from glm_lightning.evaluation.settings import Settings

__all__ = ["Record", "Scores", "Settings", "Share", "score"]
