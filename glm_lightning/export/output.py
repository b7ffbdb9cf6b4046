"""What is written of each part: its tensors in their type and under the names of the chosen layout."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from glm_lightning.export.few_bits import FewBits
from glm_lightning.export.network import Streamed
from glm_lightning.export.parts import Part
from glm_lightning.export.writing import Shards
from glm_lightning.types import UserError


@final
class Output:
    """Rounds the parts of a network and hands them to ``shards``.

    Args:
        streamed: the network that the parts are in.
        shards: takes the tensors.
        dtype: the type of the written weights; other tensors (a mixture's routing bias) keep theirs. None: all do.
        few_bits: how linear layers are held in the written files, and the type that they have without it; None: like
            all others.
        layout: the class whose files are written; transformers' own class of the network writes native ones.
        repeats_tied: whether the layout has a tied tensor once more under its other name.
    """

    def __init__(
        self,
        streamed: Streamed,
        shards: Shards,
        *,
        dtype: torch.dtype | None,
        few_bits: tuple[BitsAndBytesConfig, torch.dtype] | None,
        layout: PreTrainedModel,
        repeats_tied: bool = False,
    ) -> None:
        self._streamed, self._shards = streamed, shards
        self._dtype, self._few_bits = dtype, few_bits
        self._layout, self._repeats_tied = layout, repeats_tied
        self._tied: Mapping[str, str] = streamed.network.all_tied_weights_keys
        self._sources: dict[str, Tensor] = {}
        self.untied = False
        """Whether tensors that were tied have become different ones."""

    @contextlib.contextmanager
    def written(self, part: Part, stored: Mapping[str, torch.dtype]) -> Iterator[nn.Module]:
        """Write the merged ``part``, stored as ``stored`` before; while it is entered, its module as it will load."""
        module = self._streamed.network.get_submodule(part.path)
        parameters = {name for name, _ in module.named_parameters(prefix=part.path)}
        tensors: dict[str, Tensor] = {}
        for name in part.names:
            chosen = self._dtype if self._dtype is not None and name in parameters else stored[name]
            tensors[name] = self._streamed.tensor(name).to(chosen)
            self._streamed.replace(name, tensors[name])
        with self._held(module, part) as held:
            self._shards.add(self._named({**tensors, **held}))
            yield module

    @contextlib.contextmanager
    def _held(self, module: nn.Module, part: Part) -> Iterator[dict[str, Tensor]]:
        if self._few_bits is None:
            yield {}
            return
        settings, dtype = self._few_bits
        # no adapter is left in this part, and what one has trained as a whole is a new module
        with FewBits.of(self._streamed.network, settings).inside(module, dtype=dtype) as stored:
            yield {f"{part.path}.{name}": tensor for name, tensor in stored.items()}

    def _named(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Under the names, and in the shapes, that the files have."""
        tensors = {name: tensor for name, tensor in tensors.items() if not self._is_repeated(name, tensor)}
        layout: Any = self._layout
        named: dict[str, Tensor] = revert_weight_conversion(layout, tensors)
        return named

    def _is_repeated(self, name: str, tensor: Tensor) -> bool:
        """Whether a tensor is left out, for it is tied to one that is written."""
        if name in self._tied.values():
            self._sources[name] = tensor
        if name not in self._tied:
            return False
        if torch.equal(tensor, self._sources[self._tied[name]]):
            return not self._repeats_tied
        if self._repeats_tied:
            raise UserError(
                f"--layout official: {name} has become another matrix than {self._tied[name]}, which it shares in this "
                "layout; leave --layout out"
            )
        self.untied = True
        return False
