"""The same weights in modules of their own."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def twin(network: Network) -> Network:
    """A network that shares every tensor with ``network`` and no module: what is put on one does not show on the other.

    It takes no memory to speak of, so any number of adapters, of any kind, can be put on the twins of one base.
    """
    shared: list[object] = [*network.parameters(), *network.buffers()]
    # bitsandbytes keeps the weights of a layer in 8 bits here, too
    shared += [vars(module)["state"] for module in network.modules() if "state" in vars(module)]
    return copy.deepcopy(network, {id(each): each for each in shared})
