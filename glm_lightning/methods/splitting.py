"""Low-rank updates that begin as a part of the base's weights, which is then missing there."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast, final

import torch
from lightning.pytorch import Callback
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from glm_lightning.types import UserError

ADAPTER = "default"
"""PEFT's name of the one adapter."""

SPLITTING = r"pissa|pissa_niter_\d+|olora"
"""Ways to begin that take a part out of the base's weights and train that."""


def splits(init: bool | str) -> bool:
    """Whether the base's weights lose what an update that begins so begins with."""
    return isinstance(init, str) and re.fullmatch(SPLITTING, init) is not None


@final
class Split(Callback):
    """The start A0, B0 of every update, so that W = rest + scaling * B0 A0 is never lost.

    A checkpoint holds the start (the rest follows from it and the base), for a decomposition may come out otherwise on
    another machine. PiSSA: Meng et al. 2024, arXiv:2404.02948; OLoRA: Büyükakyüz 2024, arXiv:2406.01775.
    """

    def __init__(self, *, init: str, load: Callable[[], PreTrainedModel]) -> None:
        """``load`` gives the base anew."""
        self._init, self._load = init, load
        self._network: nn.Module = nn.Identity()
        self._start: dict[str, Tensor] = {}

    def begin(self, network: nn.Module) -> None:
        """Split the weights of ``network``, whose updates PEFT has put at zero."""
        self._network = network
        with torch.no_grad():
            for layer in self._layers().values():
                split(layer, self._init)
        self._start = {name: parameter.detach().clone() for name, parameter in self._updates().items()}

    def _layers(self) -> dict[str, LoraLayer]:
        return {name: module for name, module in self._network.named_modules() if isinstance(module, LoraLayer)}

    def _updates(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self._network.named_parameters() if ".lora_A." in name or ".lora_B." in name}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know."""
        return dict(self._start)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the rest of the base that belongs to a stored start."""
        here = {name: start.cpu() for name, start in self._start.items()}
        if here.keys() == state_dict.keys() and all(torch.equal(here[name], state_dict[name]) for name in here):
            return
        base = self._load()
        for name, start in self._start.items():
            start.copy_(state_dict[name])
        for name, layer in self._layers().items():
            weight = base.get_parameter(f"{name.removeprefix('base_model.model.')}.weight")
            update_a, update_b = (self._start[f"{name}.lora_{side}.{ADAPTER}.weight"] for side in "AB")
            cast(nn.Linear, layer.get_base_layer()).weight.data.copy_(_rest(weight, layer, update_a, update_b))

    @contextlib.contextmanager
    def base(self) -> Iterator[None]:
        """While it is entered, the updates are where they began, and the network answers as its base."""
        dropouts = [
            dropout
            for name, dropout in self._network.named_modules()
            if name.endswith(f".lora_dropout.{ADAPTER}") and dropout.training
        ]
        for dropout in dropouts:
            dropout.eval()
        kept = {name: parameter.detach().clone() for name, parameter in self._updates().items()}
        self._put(self._start)
        try:
            yield
        finally:
            self._put(kept)
            for dropout in dropouts:
                dropout.train()

    def _put(self, values: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self._updates().items():
                parameter.copy_(values[name])

    def write(self, folder: Path) -> None:
        """Write an adapter of twice the rank for the whole base: B A - B0 A0 = [B, -B0] [A; A0]."""
        network = cast(PeftModel, self._network)
        with tempfile.TemporaryDirectory() as temporary:
            start = Path(temporary) / "start"
            with self.base():
                network.save_pretrained(str(start), save_embedding_layers=False)
            network.save_pretrained(
                str(folder), save_embedding_layers=False, path_initial_model_for_weight_conversion=str(start)
            )


def split(layer: LoraLayer, init: str) -> None:
    """Take the beginning of the update of ``layer`` out of its base's weight.

    Raises:
        UserError: the weight is float64.
    """
    if layer.get_base_layer().weight.dtype == torch.float64:
        raise UserError(f"method.init is {init!r}: PEFT decomposes no float64; use init=default or another precision")
    if init == "olora":
        layer.olora_init(ADAPTER)
    else:
        layer.pissa_init(ADAPTER, init)


def _rest(weight: Tensor, layer: LoraLayer, update_a: Tensor, update_b: Tensor) -> Tensor:
    """What is left of a weight, by the very expression that PEFT computes it with."""
    rest: Tensor = weight.data.float() - layer.scaling[ADAPTER] * update_b.cpu() @ update_a.cpu()
    return rest.to(weight.dtype)
