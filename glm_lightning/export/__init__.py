"""Hand on what was trained to other programs."""

from glm_lightning.export.folders import Exported, default_folder, export_adapter, export_model

__all__ = ["Exported", "default_folder", "export_adapter", "export_model"]
