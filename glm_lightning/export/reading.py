"""The tensors of a model's files, part by part, under the names that transformers' network gives them."""

from __future__ import annotations

import copy
import math
import re
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    WeightTransform,
    dot_natural_key,
    rename_source_key,
)

from glm_lightning.export.parts import Part, parts
from glm_lightning.models import Source, families
from glm_lightning.types import UserError

_TYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""Of weights, by safetensors' names; others are not counted among them."""


@final
class Weights:
    """What lies in the files of ``source``: mapped, so that a tensor takes memory while it is looked at.

    Names and shapes become those of the network by the rules by which transformers loads it. ``surplus`` are the names
    of tensors that the network leaves aside, such as the layers for predicting several tokens at once.

    Raises:
        UserError: there are no files, one of them is broken, or they hold what no network of this kind has.
    """

    def __init__(self, source: Source) -> None:
        source.check()
        self.path = source.path
        layout = families.layout(source.raw_config)
        make: Any = AutoModelForCausalLM.from_config if layout is None else layout.READER
        with torch.device("meta"):
            self._network: PreTrainedModel = make(source.config)
        rules = get_model_conversion_mapping(self._network)
        self._renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        self._converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
        self._tied: Mapping[str, str] = self._network.all_tied_weights_keys
        self._shapes = {name: tensor.shape for name, tensor in self._network.state_dict().items()}
        self._stored: dict[str, Any] = {}
        for file in source.weight_files():
            self._stored |= _opened(file)
        self.parts = parts(self._network)
        self._keys: dict[str, list[str]] = {part.path: [] for part in self.parts}
        self.surplus: list[str] = []
        self._sort()

    def _sort(self) -> None:
        """Find the part that each key of the files belongs to."""
        owner = {name: part.path for part in self.parts for name in part.names}
        for key in sorted(self._stored, key=dot_natural_key):
            name, _ = self._renamed(key)
            if name in owner:
                self._keys[owner[name]].append(key)
            else:
                self.surplus.append(key)
        ignored = [re.compile(pattern) for pattern in self._network._keys_to_ignore_on_load_unexpected or ()]
        ignored.append(re.compile(r"rotary_emb\.inv_freq"))  # of old releases, whatever the network
        if unknown := [key for key in self.surplus if not any(pattern.search(key) for pattern in ignored)]:
            raise UserError(
                f"model.path is {self.path!r}: the files hold {len(unknown)} weights that the network of config.json "
                f"lacks: {_some(unknown)}; give the config.json that belongs here, or files without them"
            )

    def _renamed(self, key: str) -> tuple[str, str | None]:
        """The (first) name in the network, and the pattern of the converter that makes it, if one does."""
        prefix = self._network.base_model_prefix
        name, pattern = rename_source_key(key, self._renamings, self._converters, prefix, self._shapes)
        if name not in self._shapes and key in self._shapes:
            return key, None
        return name, pattern

    def read(self, part: Part) -> dict[str, Tensor]:
        """The tensors of ``part`` in the types that they are stored in; one that is tied is that which it is tied to.

        Raises:
            UserError: some are missing, or of another shape than the network's.
        """
        found = self._converted({key: self._stored[key][...] for key in self._keys[part.path]})
        for name in part.names:
            if source := self._tied.get(name):
                owned = source in found
                found[name] = found[source] if owned else self._converted(self._alone(source))[source]
        self._check(part, found)
        return {name: found[name] for name in part.names}

    def _alone(self, name: str) -> dict[str, Tensor]:
        return {key: self._stored[key][...] for key in self._stored if self._renamed(key)[0] == name}

    def _check(self, part: Part, found: Mapping[str, Tensor]) -> None:
        if missing := [name for name in part.names if name not in found]:
            raise UserError(
                f"model.path is {self.path!r}: the files lack {len(missing)} weights of the network: {_some(missing)}; "
                "download them again"
            )
        if wrong := [name for name in part.names if found[name].shape != self._shapes[name]]:
            shapes = [f"{name} {tuple(found[name].shape)} for {tuple(self._shapes[name])}" for name in wrong]
            raise UserError(
                f"model.path is {self.path!r}: weights of another shape than config.json says: {_some(shapes)}; "
                "give the config.json that belongs here"
            )

    def _converted(self, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As `transformers.core_model_loading.convert_and_load_state_dict_in_model`, for some of the keys."""
        patterns = {pattern: each for each in self._converters for pattern in each.source_patterns}
        making: dict[str, WeightTransform] = {}
        for key in sorted(stored, key=dot_natural_key):
            name, pattern = self._renamed(key)
            new = WeightRenaming(key, name) if pattern is None else copy.deepcopy(patterns[pattern])
            making.setdefault(name, new).add_tensor(name, key, pattern or key, stored[key])  # type: ignore[arg-type]
        found: dict[str, Tensor] = {}
        for name, transform in making.items():
            made = transform.convert(name, model=self._network, config=self._network.config)  # type: ignore[attr-defined]
            found |= {target: value[0] if isinstance(value, list) else value for target, value in made.items()}
        return found

    @property
    def dtype(self) -> torch.dtype:
        """The type that most of the weights are stored in."""
        sizes: Counter[torch.dtype] = Counter()
        for stored in self._stored.values():
            dtype, size = _type_and_size(stored)
            sizes[dtype] += size
        return max(sizes, key=sizes.__getitem__)

    @property
    def size(self) -> int:
        """Elements in all files."""
        return sum(_type_and_size(stored)[1] for stored in self._stored.values())

    def raw(self, key: str) -> Tensor:
        """A tensor by its name in the files."""
        tensor: Tensor = self._stored[key][...]
        return tensor


def _type_and_size(stored: Any) -> tuple[torch.dtype, int]:
    if isinstance(stored, Tensor):
        return stored.dtype, stored.numel()
    return _TYPES.get(stored.get_dtype(), torch.uint8), math.prod(stored.get_shape())


def _opened(file: Path) -> dict[str, Any]:
    """What gives each tensor of a file when it is indexed with ``...``."""
    try:
        if file.suffix == ".safetensors":
            opened: Any = safe_open(file, framework="pt")
            return {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118 - it is no mapping
        # files of torch before 1.6 are no archives and cannot be mapped
        return dict(torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file)))
    except (OSError, SafetensorError, RuntimeError, UnpicklingError) as error:
        raise UserError(f"{file}: cannot be read as weights: {error}; download it again") from error


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
