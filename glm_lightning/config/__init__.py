"""Compose a configuration, check it before anything heavy is loaded, keep it with its run.

Nothing here imports torch or lightning until `check` meets a ``_target_`` that does.
"""

from glm_lightning.config import help, places
from glm_lightning.config.binding import check
from glm_lightning.config.command_line import arguments, compose
from glm_lightning.config.errors import exit_on_user_error
from glm_lightning.config.making import made
from glm_lightning.config.places import command, conf_dir, entry_point
from glm_lightning.config.quoting import quote
from glm_lightning.config.storage import load, refuse_foreign, save

__all__ = [
    "arguments",
    "check",
    "command",
    "compose",
    "conf_dir",
    "entry_point",
    "exit_on_user_error",
    "load",
    "made",
    "quote",
    "refuse_foreign",
    "save",
]

help.register()
places.register()
