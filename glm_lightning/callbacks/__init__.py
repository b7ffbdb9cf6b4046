"""What Lightning does not bring: speed and memory, metrics as JSON lines, progress in steps, exact checkpoints."""

from glm_lightning.callbacks.checkpoints import BestAndLast
from glm_lightning.callbacks.metrics_file import JsonLines
from glm_lightning.callbacks.progress import StepProgress
from glm_lightning.callbacks.throughput import Throughput

__all__ = ["BestAndLast", "JsonLines", "StepProgress", "Throughput"]
