"""A forward pass through a network that is in memory only where it computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from glm_lightning.export.parts import Part

Stages = Callable[[Part], Iterator[nn.Module]]
"""Brings a part into memory, yields its module in one state after the other, and takes it out again."""


@dataclass(frozen=True)
class Probe:
    """Prompts, padded on the right. ids and mask (B, T), the mask 1 on real tokens."""

    ids: Tensor
    mask: Tensor

    @classmethod
    def of(cls, prompts: list[list[int]], *, pad_id: int) -> Probe:
        """From the ids of each prompt."""
        longest = max(map(len, prompts))
        rows = [prompt + [pad_id] * (longest - len(prompt)) for prompt in prompts]
        real = [[1] * len(prompt) + [0] * (longest - len(prompt)) for prompt in prompts]
        return cls(torch.tensor(rows), torch.tensor(real))


@torch.no_grad()
def walk(network: PreTrainedModel, parts: list[Part], stages: Stages, probe: Probe, *, num_stages: int) -> list[Tensor]:
    """Take every part through its stages; logits (N, V) of the probe's N real tokens, as each stage computes them.

    The probe goes through once, with a copy for each stage, so that a part comes into memory once and the network's
    own code makes positions and masks. Parts that it does not ask for go through their stages behind it.
    """
    waiting = {part.path: part for part in parts}

    def forward(part: Part, *args: Any, **kwargs: Any) -> Any:
        del waiting[part.path]
        rows = [partial(_rows, stage=stage, num_stages=num_stages, batch=len(probe.ids)) for stage in range(num_stages)]
        outputs = [
            type(module).forward(module, *own(args), **own(kwargs))
            for own, module in zip(rows, stages(part), strict=True)
        ]
        return _joined(outputs)

    for part in parts:
        network.get_submodule(part.path).forward = partial(forward, part)
    ids, mask = (tensor.repeat(num_stages, 1) for tensor in (probe.ids, probe.mask))
    logits: Tensor = network(input_ids=ids, attention_mask=mask, use_cache=False).logits
    for part in list(waiting.values()):
        deque(stages(part), maxlen=0)
    real = probe.mask.bool()
    return [each[real].float() for each in logits.chunk(num_stages)]


def _rows(value: Any, *, stage: int, num_stages: int, batch: int) -> Any:
    """What a stage sees of an argument: its own rows, where it has rows."""
    if isinstance(value, Tensor) and value.ndim and len(value) == num_stages * batch:
        return value[stage * batch : (stage + 1) * batch]
    if isinstance(value, dict):
        return {k: _rows(v, stage=stage, num_stages=num_stages, batch=batch) for k, v in value.items()}
    if isinstance(value, tuple):
        return tuple(_rows(each, stage=stage, num_stages=num_stages, batch=batch) for each in value)
    return value


def _joined(outputs: list[Any]) -> Any:
    if isinstance(outputs[0], tuple):
        return tuple(_joined(list(each)) for each in zip(*outputs, strict=True))
    return torch.cat(outputs) if isinstance(outputs[0], Tensor) else outputs[0]
