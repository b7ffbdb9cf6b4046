"""Which layers of a network a method is put on, by the names that all families use."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from torch import nn
from transformers import PreTrainedModel

from glm_lightning.models.depth import blocks as blocks

ALL = "all-linear"
"""Every linear layer but the head."""

_ATTENTION = ("self_attn", "attention", "self_attention", "attn")
_OUTPUT = ("o_proj", "dense", "out_proj")

_EXPERTS_ONCE = ("gate", "gate_proj", "up_proj", "down_proj")

PRESETS = (ALL, "attention", "qkv")
"""``attention``: the linear layers of attention. ``qkv``: those of them that make queries, keys and values."""


def linear(skeleton: nn.Module) -> list[str]:
    """Names of all linear layers, the head among them."""
    return [name for name, module in skeleton.named_modules() if isinstance(module, nn.Linear)]


def ends(names: Iterable[str]) -> list[str]:
    """Last parts of names, each once."""
    return sorted({name.rpartition(".")[2] for name in names})


def endings(names: Iterable[str]) -> list[str]:
    """Last two parts of names, such as ``self_attn.q_proj``, each once."""
    return sorted({".".join(name.split(".")[-2:]) for name in names})


def in_attention(skeleton: nn.Module) -> list[str]:
    """Endings of the names of the linear layers of attention."""
    return [ending for ending in endings(linear(skeleton)) if ending.partition(".")[0] in _ATTENTION]


def resolved(targets: str | Sequence[str], skeleton: nn.Module) -> str | list[str]:
    """``targets`` with presets spelt out for this network; PEFT reads the rest, a text as a regular expression."""
    if targets == "attention":
        return in_attention(skeleton)
    if targets == "qkv":
        return [name for name in in_attention(skeleton) if name.rpartition(".")[2] not in _OUTPUT]
    return targets if isinstance(targets, str) else list(targets)


def matched(targets: str | Sequence[str], names: Collection[str]) -> list[str]:
    """Those of ``names`` that PEFT finds for `resolved` targets (other than ``all-linear``)."""
    if isinstance(targets, str):
        return [name for name in names if re.fullmatch(targets, name)]
    return [name for name in names if any(name == target or name.endswith(f".{target}") for target in targets)]


def problems(key: str, targets: str | Sequence[str], skeleton: nn.Module) -> list[str]:
    """Targets that match no linear layer of ``skeleton``, each by name."""
    if targets == ALL:
        return []
    names = linear(skeleton)
    there = f"matches no linear layer; there are {', '.join(ends(names))}"
    if not isinstance(targets, str):
        return [f"{key} holds {target!r}: {there}" for target in sorted(targets) if not matched([target], names)]
    try:
        found = matched(resolved(targets, skeleton), names)
    except re.error as error:
        return [f"{key} is {targets!r}: none of {', '.join(PRESETS)}, and no regular expression: {error}"]
    return [] if found else [f"{key} is {targets!r}: {there}"]


def experts(network: nn.Module) -> Mapping[str, nn.Parameter]:
    """Parameters that hold one matrix for each expert of a mixture, (experts, outputs, inputs), by name."""
    return {name: parameter for name, parameter in network.named_parameters() if parameter.ndim == 3}


def taken_for_experts(names: Iterable[str], network: nn.Module) -> list[str]:
    """Endings of those names of linear layers that PEFT would put the experts for in a mixture.

    PEFT 0.21 reads the names that experts had before they were fused, wherever they stand: asked for a dense or shared
    ``down_proj`` it adapts the experts' and nothing else (its issue 3711).
    """
    if not experts(network):
        return []
    return [ending for ending in endings(names) if ending.rpartition(".")[2] in _EXPERTS_ONCE]


def expert_names(network: nn.Module) -> list[str]:
    """Endings of the names of expert parameters, such as ``mlp.experts.down_proj``."""
    return sorted({".".join(name.split(".")[-3:]) for name in experts(network)})


def modules(name: str, network: nn.Module) -> dict[str, nn.Module]:
    """Modules whose name is ``name``, or ends in it behind a dot, or matches it as a regular expression."""
    return {
        path: module
        for path, module in network.named_modules()
        if path and (path == name or path.endswith(f".{name}") or re.fullmatch(name, path))
    }


def with_weights(network: nn.Module) -> str:
    """What modules that hold parameters are called at the end of their names, in a list to choose from."""
    names = ends(path for path, module in network.named_modules() if any(True for _ in module.parameters()))
    return ", ".join(name for name in names if name and not name.isdigit())


def final_norm(network: PreTrainedModel) -> list[nn.Module]:
    """The norm behind the last layer: a sibling of the list of layers that is neither embedding nor empty."""
    layers = blocks(network)
    owner = next(module for module in network.modules() if layers in module.children())
    embedding = network.get_input_embeddings()
    return [m for m in owner.children() if m is not layers and m is not embedding and [*m.parameters()]]
