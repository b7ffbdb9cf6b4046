"""A network in the parts that it is taken through memory in: each decoder layer, and what stands around them."""

from __future__ import annotations

from typing import NamedTuple

from transformers import PreTrainedModel

from glm_lightning.methods import layers


class Part(NamedTuple):
    """A module by its path, and the names of all tensors in it that a checkpoint holds."""

    path: str
    names: tuple[str, ...]


def parts(network: PreTrainedModel) -> list[Part]:
    """All that a checkpoint of ``network`` holds, in its order; no part is inside another one."""
    blocks = layers.blocks(network)
    inside = next(path for path, module in network.named_modules() if module is blocks)
    found: dict[str, list[str]] = {}
    for name in network.state_dict():
        owner = name.rpartition(".")[0]
        if name.startswith(f"{inside}."):
            owner = ".".join(name.split(".")[: inside.count(".") + 2])
        found.setdefault(owner, []).append(name)
    outermost = {owner: _outermost(owner, found) for owner in found}
    return [
        Part(path, tuple(name for owner in found if outermost[owner] == path for name in found[owner]))
        for path in dict.fromkeys(outermost.values())
    ]


def _outermost(owner: str, owners: dict[str, list[str]]) -> str:
    return min((each for each in owners if not each or f"{owner}.".startswith(f"{each}.")), key=len)
