"""How the network is laid on the devices of a run: which strategy, and what goes with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

import torch.distributed as dist
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedModel

from glm_lightning.config.nearest import hint
from glm_lightning.estimate.skeleton import skeleton
from glm_lightning.methods.base import DEEPSPEED, FSDP, SHARDING, Method
from glm_lightning.models import Source
from glm_lightning.models.source import WeightsDtype
from glm_lightning.strategies import Replicated, Sharded, Zero
from glm_lightning.training.launching import num_nodes

OURS = {
    "ddp": Replicated.strategy_name,
    "fsdp": Sharded.strategy_name,
    "fsdp_zero2": Sharded.strategy_name_zero2,
    "deepspeed": Zero.strategy_name,
    "deepspeed_zero2": Zero.strategy_name_zero2,
}
"""Values of ``trainer.strategy``, and what Lightning knows our strategies by."""

NAMES = ("auto", *OURS)


def strategy(config: DictConfig) -> Any:
    """What Lightning is given for ``trainer.strategy``; a node with a ``_target_`` is the user's own."""
    chosen = config.trainer.strategy
    if chosen == "auto" and (str(config.trainer.devices) != "1" or num_nodes(config) > 1):
        chosen = "ddp"
    return OURS.get(chosen, chosen) if isinstance(chosen, str) else chosen


def is_sharded(config: DictConfig) -> bool:
    """Whether ranks hold parts of a weight."""
    return config.trainer.strategy in SHARDING


def problems(config: DictConfig) -> Iterator[str]:
    """What cannot go together with the strategy, by the configuration alone."""
    name = config.trainer.strategy
    if OmegaConf.is_config(name):
        return
    if name not in NAMES:
        yield f"trainer.strategy is {name}: must be one of {', '.join(NAMES)}{hint(name, NAMES)}"
        return
    kind: type[Method] = get_class(config.method._target_)
    why_not = refusal(kind, name, quantize=config.model.get("quantize"))
    if why_not is not None:
        yield f"trainer.strategy is {name}: {kind.__name__} cannot work with it; {why_not}"
    if name in (*FSDP, *DEEPSPEED):
        yield from _of_parts(config)
    if name in DEEPSPEED:
        yield from _of_deepspeed(config)


def refusal(method: type[Method], strategy: str, *, quantize: str | None) -> str | None:
    """What to do instead of using a method with a strategy; None where it works."""
    if strategy in SHARDING and quantize is not None:
        return "quantised layers are not sharded; use trainer=ddp, or quantize=null with method=lora"
    return method.refused_strategies.get(strategy)


def table(methods: Mapping[str, type[Method]]) -> Iterator[tuple[str, ...]]:
    """Method by strategy (as `NAMES` has them, then a quantised base on one device or with ddp): ``yes`` or ``no``."""
    for name, method in sorted(methods.items()):
        needs_bits = name == "qlora"
        cells = [refusal(method, strategy, quantize="nf4" if needs_bits else None) is None for strategy in NAMES]
        yield (name, *("yes" if works else "no" for works in (*cells, method.on_quantized)))


def _of_parts(config: DictConfig) -> Iterator[str]:
    start = f"trainer.strategy is {config.trainer.strategy}: "
    if config.optimizer._target_.endswith(".adamw_8bit"):
        yield f"{start}bitsandbytes' optimizer takes no parts; use optimizer=adamw, whose averages are sharded, too"
    if str(config.trainer.precision) in ("16-mixed", "16"):
        yield f"{start}a scaled loss does not go with it; use trainer.precision=bf16-mixed or 32-true"
    if str(config.trainer.devices) == "1" and num_nodes(config) == 1:
        yield f"{start}there is one device to lay parts on; use trainer=default, or give trainer.devices=2 or more"


def _of_deepspeed(config: DictConfig) -> Iterator[str]:
    start = f"trainer.strategy is {config.trainer.strategy}: "
    if find_spec("deepspeed") is None:
        yield f"{start}needs the package deepspeed; pip install 'glm-lightning[deepspeed]', or use trainer=fsdp"
    if str(config.trainer.precision) in ("64-true", "64"):
        yield f"{start}its engine keeps float32; use trainer.precision=32-true, or trainer=ddp"
    if config.model.get("compile"):
        yield f"{start}its hooks on every layer do not go with model.compile=true; set it to false, or use trainer=ddp"


def load_on_first(source: Source, *, dtype: WeightsDtype) -> PreTrainedModel:
    """The network on the first rank; on the others one without weights, which are given their parts of it."""
    is_first = not dist.is_initialized() or dist.get_rank() == 0
    return source.load(dtype=dtype) if is_first else skeleton(source, dtype=dtype)
