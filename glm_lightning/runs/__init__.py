"""The run folder: what lies where, checkpoints in and out, the model card."""

from glm_lightning.runs.checkpoints import SafeCheckpoints
from glm_lightning.runs.folder import RunFolder

__all__ = ["RunFolder", "SafeCheckpoints"]
