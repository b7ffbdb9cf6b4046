"""Every weight, its gradient and its optimizer state in parts, one on each rank (FSDP2)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, cast, final

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from glm_lightning.strategies.parts import assign, gathered, is_part, like
from glm_lightning.types import UserError


class Shardable(Protocol):
    """What is asked of a module beside what Lightning asks."""

    def units(self) -> Iterable[nn.Module]:
        """Modules whose weights are put together for their own forward and backward pass; what holds others is last."""
        ...

    def trained(self) -> Mapping[str, nn.Parameter]:
        """The parameters that are trained, by name."""
        ...


@final
class Sharded(ModelParallelStrategy):
    """Lightning's ModelParallelStrategy with torch's ``fully_shard``, and checkpoints that do not show it.

    A weight is whole only while its layer runs, or (``whole_until_backward``) from its forward pass to the end of its
    backward pass, which spares one of two gatherings: ZeRO-3, and near to ZeRO-2 (Rajbhandari et al. 2020,
    arXiv:1910.02054), which keeps weights whole between steps, too. The first rank alone loads the network; the others
    are given their parts of it, a layer at a time. Checkpoints go through the run's CheckpointIO with all tensors
    whole, as from a single device: a run goes on with another number of devices, or without sharding.
    """

    strategy_name = "fully_sharded"
    strategy_name_zero2 = "fully_sharded_zero2"

    def __init__(self, *, whole_until_backward: bool = False, **options: Any) -> None:
        """Args:
        whole_until_backward: whether a layer keeps its whole weights until its backward pass.
        options: those of Lightning's strategy.
        """
        super().__init__(**options)
        self._whole_until_backward = whole_until_backward

    def setup_environment(self) -> None:
        """Connect the ranks. Lightning's own would shard over machines and cut tensors within each."""
        self._setup_distributed()
        if self._device_mesh is None:
            self._device_mesh = init_device_mesh(
                self.root_device.type, (self.world_size,), mesh_dim_names=("data_parallel",)
            )

    def setup(self, trainer: Trainer) -> None:
        """Shard what the module has built, then make the optimizer."""
        assert self.model is not None
        self.model = self.precision_plugin.convert_module(self.model)
        module = cast(Shardable, self.lightning_module)
        _shard(
            module.units(),
            mesh=self.device_mesh,
            mp_policy=_policy(self.precision_plugin.precision),
            # None: every unit but the last, which the backward pass begins with
            reshard_after_forward=False if self._whole_until_backward else None,
        )
        if left := [name for name, parameter in module.trained().items() if not isinstance(parameter, DTensor)]:
            raise UserError(
                f"trainer.strategy is fsdp: {left[0]} is trained and lies outside of the network that is sharded, so "
                "each rank would learn its own; use trainer=ddp"
            )
        super().setup(trainer)

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Whether Lightning calls `load_optimizer_state_dict`."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Nothing: the module itself says what a checkpoint holds."""
        return {}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Tensor]:
        """The optimizer's state with all tensors whole, on the first rank."""
        own = getattr(optimizer, "_optimizer", optimizer)
        return cast("dict[str, Tensor]", gathered(own.state_dict(), keep=self.is_global_zero))

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Let the run's CheckpointIO write it on the first rank."""
        if self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, filepath, storage_options=storage_options)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Let the run's CheckpointIO read it on every rank; safetensors are mapped, and not yet read."""
        return self.checkpoint_io.load_checkpoint(checkpoint_path)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take this rank's part of every trained weight."""
        stored = checkpoint["state_dict"]
        for name, parameter in cast(Shardable, self.lightning_module).trained().items():
            assign(parameter, stored[name])

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this rank's part of every tensor that is shaped as its parameter."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            numbers = [number for group in state["param_groups"] for number in group["params"]]
            of_number = dict(zip(numbers, parameters, strict=True))
            parts = {number: _parts(values, of_number[number]) for number, values in state["state"].items()}
            optimizer.load_state_dict({**state, "state": parts})


StrategyRegistry.register(Sharded.strategy_name, Sharded, description=Sharded.__doc__)
StrategyRegistry.register(Sharded.strategy_name_zero2, Sharded, description=Sharded.__doc__, whole_until_backward=True)


def _parts(values: Mapping[str, Any], parameter: Tensor) -> dict[str, Any]:
    return {
        name: like(parameter, value) if isinstance(value, Tensor) and value.shape == parameter.shape else value
        for name, value in values.items()
    }


def _policy(precision: str) -> MixedPrecisionPolicy:
    """Weights travel in the type that is computed in: autocast would keep a copy of each of them, whole, to the end."""
    if precision != "bf16-mixed":
        return MixedPrecisionPolicy()
    return MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)


def _shard(units: Iterable[nn.Module], *, mesh: DeviceMesh, **options: Any) -> None:
    """Shard every unit by itself, with torch's ``options``."""
    device = torch.device("cuda", torch.cuda.current_device()) if mesh.device_type == "cuda" else torch.device("cpu")
    for unit in units:
        fill(unit, device)
        fully_shard(unit, mesh=mesh, **options)
        unit.register_forward_hook(_in_parts_again)
    mark_shared(unit)


def mark_shared(network: nn.Module) -> None:
    """Let transformers' generate, which knows this mark, make a rank that is done run on until all are."""
    network._is_fsdp_managed_module = True  # type: ignore[assignment]


def _in_parts_again(unit: nn.Module, args: Any, output: Any) -> None:
    """Without a backward pass torch would leave whole what waits for one, and a checkpoint would take that for it."""
    if not torch.is_grad_enabled():
        cast(FSDPModule, unit).reshard()


def fill(unit: nn.Module, device: torch.device) -> None:
    """Give the first rank's weights and buffers of ``unit``, apart from what is sharded already, to every rank.

    What several modules share stays shared. On the others ``unit`` may be on the meta device.
    """
    held: list[dict[str, Any]] = [
        tensors for module in unit.modules() for tensors in (module._parameters, module._buffers)
    ]
    places: dict[Tensor, list[tuple[dict[str, Any], str]]] = {}
    for tensors in held:
        for name, tensor in tensors.items():
            if tensor is not None and not is_part(tensor):
                places.setdefault(tensor, []).append((tensors, name))
    kinds = _of_first([(tensor.shape, tensor.dtype) for tensor in places])
    assert [tensor.shape for tensor in places] == [shape for shape, _ in kinds], "ranks build different networks"
    for (tensor, found), (_, dtype) in zip(places.items(), kinds, strict=True):
        filled = _sent(tensor, dtype, device)
        for tensors, name in found:
            tensors[name] = filled


def _of_first(value: Any) -> Any:
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def _sent(tensor: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    is_first = dist.get_rank() == 0
    values = (
        tensor.detach().to(device).contiguous() if is_first else torch.empty(tensor.shape, dtype=dtype, device=device)
    )
    dist.broadcast(values, src=0)
    return nn.Parameter(values, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else values
