"""A network whose weights come part by part: an adapter is put on it before there are any."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, final

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from glm_lightning.export.parts import Part
from glm_lightning.inference import adapters
from glm_lightning.methods import splitting
from glm_lightning.models import Source
from glm_lightning.types import UserError


@final
class Streamed:
    """The network of ``source``, hollow: every weight has its shape and one number. It computes in ``dtype``.

    A part is put in by `fill`, becomes that of a network without adapters by `merge`, and is taken out by `drop`.
    PEFT puts the adapter on and folds it in: nothing of that is done anew here.
    """

    def __init__(self, source: Source, *, dtype: torch.dtype) -> None:
        self.network = _hollow(source, dtype)
        self._dtype = dtype
        # PEFT wraps these modules and keeps them inside: the base's tensors have their places from here on
        self._owners = dict(self.network.named_modules())
        self._adapter: Path | None = None
        self._splits: str | None = None

    def adapt(self, adapter: Path) -> None:
        """Put the adapter in a folder on.

        Raises:
            UserError: it does not fit.
        """
        init = adapters.about(adapter, adapters.PEFT).get("init_lora_weights", True)
        self._splits = init if splitting.splits(init) else None
        self._adapter = adapter
        adapters.put_on(self.network, adapter, hollow=True)

    def fill(self, part: Part, tensors: Mapping[str, Tensor]) -> nn.Module:
        """Put the base's ``tensors`` into ``part``: the module as it was trained, if that was not with few bits."""
        for name, tensor in tensors.items():
            path, _, leaf = name.rpartition(".")
            self._put(self._owners[path], leaf, tensor)
        module = self.network.get_submodule(part.path)
        if self._splits is not None:
            for layer in (each for each in module.modules() if isinstance(each, LoraLayer)):
                _split(layer, self._splits)
        return module

    def _put(self, owner: nn.Module, leaf: str, tensor: Tensor) -> None:
        if leaf in owner._parameters:
            owner._parameters[leaf] = nn.Parameter(tensor.to(self._dtype), requires_grad=False)
        else:
            owner._buffers[leaf] = tensor

    @torch.no_grad()
    def merge(self, part: Part) -> None:
        """Fold what was trained into ``part``, so that it is that of a network without adapters.

        Raises:
            UserError: the weights would not be numbers any more.
        """
        for path, module in _wrapped(self.network, part.path):
            try:
                plain = _unwrapped(module)
            except ValueError as error:  # PEFT's check
                raise UserError(f"{self._adapter}: cannot be merged into {path}: {error}") from error
            self.network.set_submodule(path, plain)

    def tensor(self, name: str) -> Tensor:
        """A tensor of a part that is in memory, and merged."""
        path, _, leaf = name.rpartition(".")
        return cast(Tensor, getattr(self.network.get_submodule(path), leaf)).detach()

    def replace(self, name: str, tensor: Tensor) -> None:
        """Put another one in its place."""
        path, _, leaf = name.rpartition(".")
        self._put(self.network.get_submodule(path), leaf, tensor)

    def drop(self, part: Part) -> None:
        """Take the tensors of ``part`` out again."""
        for name in part.names:
            path, _, leaf = name.rpartition(".")
            owner = self.network.get_submodule(path)
            tensors: dict[str, Any] = owner._parameters if leaf in owner._parameters else owner._buffers
            shape = tensors[leaf].to("meta")
            tensors[leaf] = nn.Parameter(shape, requires_grad=False) if tensors is owner._parameters else shape


def _hollow(source: Source, dtype: torch.dtype) -> PreTrainedModel:
    """No weights, but the tables that no file holds, such as rotary frequencies."""
    with torch.device("meta"):
        network = cast(PreTrainedModel, AutoModelForCausalLM.from_config(source.config))
    for module in network.modules():
        for name, tensor in module._parameters.items():
            if tensor is not None:
                shape = torch.zeros((), dtype=dtype).expand(tensor.shape)
                module._parameters[name] = nn.Parameter(shape, requires_grad=False)
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else torch.zeros_like(buffer, device="cpu")
        if module._non_persistent_buffers_set:
            network._init_weights(module)
    network.eval()
    return network


@torch.no_grad()
def _split(layer: Any, init: str) -> None:
    """Take out of the base's weight what the update began with; only then do the two belong together.

    Adapters of other tools may be stored so; ours are stored as updates of the whole base.
    """
    trained = {name: parameter.detach().clone() for name, parameter in layer.named_parameters() if "lora_" in name}
    splitting.split(layer, init)
    for name, parameter in layer.named_parameters():
        if name in trained:
            parameter.data = trained[name]


def _wrapped(network: nn.Module, path: str) -> list[tuple[str, nn.Module]]:
    """What PEFT has put around modules of the part ``path``, the outermost of each, by path."""
    found: list[tuple[str, nn.Module]] = []
    module: Any
    for name, module in network.get_submodule(path).named_modules(prefix=path):
        inside = any(name.startswith(f"{outer}.") for outer, _ in found)
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper) and not inside:
            found.append((name, cast(nn.Module, module)))
    return found


def _unwrapped(module: Any) -> nn.Module:
    """As ``merge_and_unload`` does it for one module."""
    if isinstance(module, AuxiliaryTrainingWrapper) or hasattr(module, "unload_and_optionally_merge_module"):
        plain = module.unload_and_optionally_merge_module(merge=True, safe_merge=True, adapter_names=None)
    else:
        module.merge(safe_merge=True)
        plain = module.get_base_layer()
    return cast(nn.Module, plain)
