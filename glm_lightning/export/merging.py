"""Take a network through memory once, part by part: read, merge, round, measure and write it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast, final

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig

from glm_lightning.export.few_bits import FewBits
from glm_lightning.export.network import Streamed
from glm_lightning.export.output import Output
from glm_lightning.export.parts import Part
from glm_lightning.export.reading import Weights
from glm_lightning.export.walking import Probe, walk
from glm_lightning.export.writing import DEFAULT_SHARD, Shards
from glm_lightning.models import Source, families, quantization
from glm_lightning.models.quantization import Quantize
from glm_lightning.models.source import WeightsDtype

Layout = Literal["native", "official"]


@dataclass(frozen=True)
class Wanted:
    """How a model is to be written.

    Args:
        layout: ``native`` is transformers' own, ``official`` that of the early generations' releases.
        dtype: the type of the weights; ``auto`` is that which they are stored in.
        quantize: hold the linear layers in ``nf4`` or ``int8`` (bitsandbytes).
        blend: how far to go from the base (0) to what was trained (1).
        shard_size: largest size of a file in bytes.
    """

    layout: Layout = "native"
    dtype: WeightsDtype = "auto"
    quantize: Quantize | None = None
    blend: float = 1.0
    shard_size: float = DEFAULT_SHARD


@dataclass(frozen=True)
class Measured:
    """Logits of the written network beside those of the one that was trained, after the same prompts.

    ``difference`` is the largest absolute one, ``unrounded`` that before the weights are rounded to the type that they
    are written in; ``agreeing`` of ``tokens`` positions have the same most likely token. ``from_quantized`` is the
    largest difference from the network as it was trained, where its base was quantised then.
    """

    difference: float
    unrounded: float
    agreeing: int
    tokens: int
    prompts: int
    from_quantized: float | None = None


@final
class Merging:
    """The network of ``source``, with the adapter in ``adapter`` if there is one, on its way to other files.

    ``origin`` is what was trained: the base itself, or that of a network that was trained as a whole.
    """

    def __init__(self, source: Source, adapter: Path | None, wanted: Wanted, *, origin: Source) -> None:
        self.source, self.origin = replace(source, quantize=None, dtype="auto"), origin
        self.wanted = wanted
        self.weights = Weights(self.source)
        self._base: Weights | None = None
        if wanted.blend != 1 and adapter is None:
            self._base = Weights(replace(origin, quantize=None, dtype="auto"))
        stored = self.weights.dtype
        self.dtype: torch.dtype = stored if wanted.dtype == "auto" else getattr(torch, wanted.dtype)
        # half precision is computed in float32
        compute = torch.float64 if stored == torch.float64 else torch.float32
        self.streamed = Streamed(self.source, dtype=compute)
        self._trained_bits: FewBits | None = None
        if source.quantize is not None:
            settings = quantization.settings(source.quantize, double=source.double_quantize, compute_dtype=compute)
            self._trained_bits = FewBits.of(self.streamed.network, settings)
        self.is_adapted = adapter is not None
        if adapter is not None:
            self.streamed.adapt(adapter)

    @property
    def loads_in_transformers(self) -> bool:
        """Whether the written folder needs neither this program nor code of its makers."""
        return self.official is None and type(self.streamed.network).__module__.startswith("transformers.")

    @property
    def settings(self) -> BitsAndBytesConfig | None:
        """How the written network is quantised."""
        if self.wanted.quantize is None:
            return None
        return quantization.settings(self.wanted.quantize, double=True, compute_dtype=self.dtype)

    @property
    def num_bytes(self) -> int:
        """Size of the weights that are written, if they are not quantised."""
        return self.weights.size * self.dtype.itemsize

    def write(self, folder: Path, probe: Probe, *, progress: Callable[[int], None]) -> Measured:
        """Write the weights into ``folder`` and measure them with ``probe``; ``progress`` is told of parts done."""
        shards = Shards(folder, limit=self.wanted.shard_size)
        output = self._output(shards)
        done = 0

        def stages(part: Part) -> Iterator[nn.Module]:
            nonlocal done
            yield from self._stages(part, output)
            done += 1
            progress(done)

        num_stages = 3 if self._trained_bits is None else 4
        network = self.streamed.network
        logits = walk(network, self.weights.parts, stages, probe, num_stages=num_stages)
        shards.add(self._rest())
        shards.finish()
        if output.untied:
            network.config.get_text_config().tie_word_embeddings = False
        return _measured(logits, num_prompts=len(probe.ids))

    def _stages(self, part: Part, output: Output) -> Iterator[nn.Module]:
        """``part`` as it was trained, in few bits if it was trained so, merged, and as it is written."""
        stored = self.weights.read(part)
        module = self.streamed.fill(part, stored)
        yield module
        if self._trained_bits is not None:
            with self._trained_bits.inside(module, dtype=self.weights.dtype):
                yield module
        self.streamed.merge(part)
        if self.wanted.blend != 1:
            self._blend(stored if self._base is None else self._base.read(part))
        yield self.streamed.network.get_submodule(part.path)
        with output.written(part, {name: tensor.dtype for name, tensor in stored.items()}) as module:
            yield module
        self.streamed.drop(part)

    def _blend(self, base: dict[str, Tensor]) -> None:
        for name, start in base.items():
            end = self.streamed.tensor(name)
            self.streamed.replace(name, torch.lerp(start.to(end.dtype), end, self.wanted.blend))

    @property
    def official(self) -> Any:
        """The module of the official layout that is written; None for transformers' own."""
        return families.layout(self.origin.raw_config) if self.wanted.layout == "official" else None

    def _output(self, shards: Shards) -> Output:
        network = self.streamed.network
        if self.official is not None:
            with torch.device("meta"):
                network = self.official.READER(network.config)
        return Output(
            self.streamed,
            shards,
            dtype=None if self.wanted.dtype == "auto" else self.dtype,
            few_bits=None if self.settings is None else (self.settings, self.dtype),
            layout=network,
            repeats_tied=self.official is not None,
        )

    def _rest(self) -> dict[str, Tensor]:
        """What is written beside the network's tensors: what its official code stores, or what else lay there."""
        if self.official is not None:
            self.streamed.network.config.dtype = self.dtype
            return cast(dict[str, Tensor], self.official.constants(self.streamed.network.config))
        if families.layout(self.source.raw_config) is not None:
            return {}
        return {key: self.weights.raw(key) for key in self.weights.surplus}


def _measured(logits: list[Tensor], *, num_prompts: int) -> Measured:
    live, *trained, merged, written = logits
    return Measured(
        difference=_largest(live, written),
        unrounded=_largest(live, merged),
        agreeing=int((live.argmax(-1) == written.argmax(-1)).sum()),
        tokens=len(live),
        prompts=num_prompts,
        from_quantized=_largest(trained[0], written) if trained else None,
    )


def _largest(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())
