"""How many tokens' keys and values there is room for."""

from __future__ import annotations

import psutil
import torch

from glm_lightning.inference.batch import Prefill, Speaker
from glm_lightning.inference.rows import Row, Token
from glm_lightning.inference.sampling import GREEDY
from glm_lightning.types import UserError

_OF_FREE = {"cpu": 0.5, "cuda": 0.8}
"""Share of the free memory that keys and values may take: attention, logits and everybody else want some, too."""


def places(speaker: Speaker, *, num_bytes: int | None = None) -> int:
    """Tokens that the cache has room for, in so many bytes; None is a share of what is free on the network's device.

    Found by reading one token: so a network that cannot be served is refused before there are clients.

    Raises:
        UserError: there is no room for a thousand.
    """
    row = Row([speaker.pad_id], _Nobody(), max_new_tokens=1, stop_ids=(), sampling=GREEDY)
    prefill = Prefill(speaker, [row], piece=1)
    prefill.step()
    rows, columns = prefill.cache.capacity
    for_one = prefill.cache.num_bytes / (rows * columns)
    given = _free(speaker.device) if num_bytes is None else num_bytes
    found = int(given / for_one)
    if found < 1000:
        raise UserError(
            f"--cache-memory: {given / 2**30:.2f} GiB hold the keys and values of {found:,} tokens "
            f"({for_one / 2**10:.0f} KiB each), which is too few to serve; give more, or take a smaller network"
        )
    return found


def _free(device: torch.device) -> int:
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    return int(free * _OF_FREE.get(device.type, 0.5))


class _Nobody:
    """Listens to nothing."""

    def hear(self, token: Token) -> bool:
        """No more."""
        return False

    def end(self, reason: str) -> None:
        """Nothing."""

    def fail(self, error: Exception) -> None:
        """Raise it."""
        raise error
