"""Make what a node of the configuration says."""

from __future__ import annotations

from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from glm_lightning.types import UserError


def made(node: Any, key: str, *args: Any, **kwargs: Any) -> Any:
    """Instantiate a node of the configuration.

    Raises:
        UserError: its constructor refuses a value, in its own words behind ``key``.
    """
    try:
        return instantiate(node, *args, _convert_="all", **kwargs)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, UserError):
            raise cause from None
        # what Lightning says to users of its own: a device that is not there, a name it does not know
        if isinstance(cause, ValueError | RuntimeError) or type(cause).__name__ == "MisconfigurationException":
            raise UserError(f"{key}: {cause}") from error
        raise
