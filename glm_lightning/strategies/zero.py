"""Gradients and optimizer state in parts, one on each rank, and weights, too (DeepSpeed's ZeRO-2 and ZeRO-3)."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, final

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from lightning.pytorch.trainer.states import TrainerFn
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.optim import Optimizer

from glm_lightning.models.prefix import PrefixEncoder
from glm_lightning.strategies.parts import assign
from glm_lightning.strategies.sharded import Shardable, fill, mark_shared
from glm_lightning.types import UserError, whole_shape

BUCKET = 1 << 24
"""Numbers of gradients that are sent at once, at most: 64 MiB in float32."""


@final
class Zero(DDPStrategy):
    """DeepSpeed's engine under Lightning's loop, with checkpoints that do not show it.

    ZeRO (Rajbhandari et al. 2020, arXiv:1910.02054): stage 2 gives each rank a part of every gradient and of the
    optimizer's state, stage 3 a part of every weight besides. What is trained is held in float32; the engine keeps its
    own copy of it, clips, and leaves out a step whose gradients are not finite. Its own checkpoints are pickles: here
    they go through the run's CheckpointIO with all tensors whole, as from a single device.
    """

    strategy_name = "zero3"
    strategy_name_zero2 = "zero2"

    def __init__(self, *, stage: Literal[2, 3]) -> None:
        """Args:
        stage: 2 or 3.
        """
        super().__init__()
        self.stage = stage
        self.norm = torch.tensor(torch.nan)
        """Of the last step's gradient, over all that is trained, before it was clipped."""
        self._engine: Any = None
        self._order: list[list[nn.Parameter]] = []  # what is trained, as the optimizer was given it

    def setup_environment(self) -> None:
        """Connect the ranks, and tell the engine which of the machine's this is."""
        super().setup_environment()
        if self.root_device.type == "cuda" and self.root_device.index != self.local_rank:
            raise UserError(
                f"trainer.devices: rank {self.local_rank} of this machine would have GPU {self.root_device.index}, and "
                "DeepSpeed takes them in turn; give their number, and choose which by CUDA_VISIBLE_DEVICES"
            )
        os.environ["LOCAL_RANK"] = str(self.local_rank)

    def setup(self, trainer: Trainer) -> None:
        """Cut what the module has built in parts, then make the optimizer and the engine."""
        assert self.accelerator is not None
        self.accelerator.setup(trainer)
        module = cast(LightningModule, self.model)
        self.model = self.precision_plugin.convert_module(module)
        config = self._config(trainer, cast(Shardable, module))
        if self.stage == 3:
            _cut(cast(Shardable, module), config, self.root_device)
        self.model_to_device()
        if trainer.state.fn == TrainerFn.FITTING:
            self.setup_optimizers(trainer)
            self._start(module, config)
        self.setup_precision_plugin()

    def _config(self, trainer: Trainer, module: Shardable) -> dict[str, Any]:
        trained = sum(parameter.numel() for parameter in module.trained().values())
        *layers, everything = (sum(each.numel() for each in unit.parameters()) for unit in module.units())
        rest = everything - sum(layers)
        autocasts = self.precision_plugin.precision == "bf16-mixed"
        return {
            "train_micro_batch_size_per_gpu": 1,  # for statistics of its own
            "gradient_accumulation_steps": 1,  # `block_backward_sync` says where a step ends
            "gradient_clipping": trainer.gradient_clip_val or 0.0,
            "zero_allow_untested_optimizer": True,
            # The engine switches off the autocast that it is called in. Nothing is sent in 16 bits.
            "torch_autocast": {"enabled": autocasts, "dtype": "bfloat16", "lower_precision_safe_modules": []},
            "zero_optimization": {
                "stage": self.stage,
                "reduce_bucket_size": min(trained, BUCKET),
                # It would exchange torch.nn.functional.linear, for all of the process, for one that rounds once more.
                "memory_efficient_linear": False,
                # as FSDP: the layer that runs and the one that is fetched meanwhile are whole
                "stage3_max_live_parameters": rest + 2 * max(layers),
                "stage3_max_reuse_distance": 0,
                "stage3_prefetch_bucket_size": max(layers),
                "stage3_param_persistence_threshold": 0,
            },
        }

    def _start(self, module: LightningModule, config: dict[str, Any]) -> None:
        import deepspeed

        deepspeed.utils.logger.setLevel(logging.ERROR)  # of a step that is left out the run says more
        (optimizer,) = self.optimizers
        self._order = [list(group["params"]) for group in optimizer.param_groups]
        self._engine, *_ = deepspeed.initialize(
            model=module, optimizer=optimizer, config=config, dist_init_required=False
        )
        self.model = self._engine  # training steps go through it

    @contextlib.contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """While it is entered, backward passes add to the step's gradient, and do not end it."""
        self._engine.set_gradient_accumulation_boundary(False)
        try:
            yield
        finally:
            self._engine.set_gradient_accumulation_boundary(True)

    def backward(self, closure_loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any) -> Tensor:
        """Let the engine do the backward pass."""
        module = cast(LightningModule, self.lightning_module)
        loss = self.precision_plugin.pre_backward(closure_loss, module)
        self._engine.backward(loss, scale_wrt_gas=False)
        return self.precision_plugin.post_backward(loss, module)

    def optimizer_step(self, optimizer: Optimizer, closure: Callable[[], Any], model: Any = None, **kwargs: Any) -> Any:
        """Let the engine take the step between the backward pass and the hooks that ask for the gradient's norm."""

        def stepping() -> Any:
            output = closure()
            self._engine.step()
            norm = self._engine.get_global_grad_norm()
            applied = self._engine.was_step_applied()
            self.norm = torch.as_tensor(norm if applied else torch.inf, device=self.root_device)
            return output

        return super().optimizer_step(cast(Optimizer, _Taken(optimizer)), stepping, model, **kwargs)

    # -- checkpoints

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """Whether the engine is there when weights are loaded."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Nothing: the module itself says what a checkpoint holds."""
        return {}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The optimizer's state with all tensors whole, on the first rank, as if it had the parameters themselves."""
        states = self._engine.optimizer.optimizer.state
        numbers, state, groups = itertools.count(), {}, []
        for group, parameters in zip(optimizer.param_groups, self._order, strict=True):
            groups.append({**group, "params": [next(numbers) for _ in parameters]})
            for number, parameter in zip(groups[-1]["params"], parameters, strict=True):
                part = self._part(parameter)
                if states:
                    state[number] = {
                        name: part.put_together(value, keep=self.is_global_zero) if value.ndim else value.clone()
                        for name, value in states[part.flat].items()
                    }
        return {"state": state, "param_groups": groups}

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Give every trained weight its value, and the engine's copy of it this rank's part."""
        for name, parameter in cast(Shardable, self.lightning_module).trained().items():
            value = checkpoint["state_dict"][name]
            assign(parameter, value)
            part = self._part(parameter)
            part.take(value, part.flat.data)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this rank's part of every average."""
        (stored,) = checkpoint["optimizer_states"]
        (optimizer,) = self.optimizers
        for group, of_stored in zip(optimizer.param_groups, stored["param_groups"], strict=True):
            group.update({key: value for key, value in of_stored.items() if key != "params"})
        states = self._engine.optimizer.optimizer.state
        parameters = [parameter for group in self._order for parameter in group]
        for number, values in stored["state"].items():
            part = self._part(parameters[number])
            for name, value in values.items():
                if not value.ndim:
                    states[part.flat][name] = value.clone()
                    continue
                part.take(value, states[part.flat].setdefault(name, torch.zeros_like(part.flat)))

    def _part(self, parameter: nn.Parameter) -> _Part:
        """Where this rank's part of ``parameter`` lies among what the engine's optimizer has."""
        inner, shape = self._engine.optimizer, whole_shape(parameter)
        if self.stage == 3:
            group, offset, length = inner.grad_position[inner.get_param_id(parameter)]
            start = length * self.global_rank  # the last part is filled up
            length = max(0, min(length, shape.numel() - start))
            return _Part(inner.fp32_partitioned_groups_flat[group], offset, start, length, shape)
        (group,) = (index for index, held in enumerate(self._order) if any(parameter is each for each in held))
        flat, found = inner.single_partition_of_fp32_groups[group], cast(Any, parameter)._hp_mapping
        if found is None:  # all of it lies on other ranks
            return _Part(flat, 0, 0, 0, shape)
        lies, of_parameter = found.hp_fragment_address, found.lp_fragment_address
        return _Part(flat, lies.start, of_parameter.start, lies.numel, shape)


StrategyRegistry.register(Zero.strategy_name, Zero, description=Zero.__doc__, stage=3)
StrategyRegistry.register(Zero.strategy_name_zero2, Zero, description=Zero.__doc__, stage=2)


_REACHING: Any = (BaseTunerLayer, PrefixEncoder)
"""Modules whose forward pass takes weights of modules inside them without running those."""


class _Taken:
    """Stands for an optimizer whose step the engine takes in the closure."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.param_groups = optimizer.param_groups

    def step(self, closure: Callable[[], Any]) -> Any:
        return closure()


@dataclass(frozen=True)
class _Part:
    """``length`` numbers of a parameter from ``start`` on, which lie at ``offset`` of what this rank holds ``flat``."""

    flat: Tensor
    offset: int
    start: int
    length: int
    shape: torch.Size

    def put_together(self, held: Tensor, *, keep: bool) -> Tensor:
        """The parameter's numbers of all ranks, from tensors that lie as ``flat`` does; all must ask at once."""
        found = held.new_zeros(self.shape.numel())
        found[self.start :][: self.length] = held[self.offset :][: self.length]
        dist.all_reduce(found)
        return (found.cpu() if keep else found.to("meta")).view(self.shape)

    def take(self, value: Tensor, held: Tensor) -> None:
        """This rank's part of a whole ``value``, into a tensor that lies as ``flat`` does."""
        held[self.offset :][: self.length] = value.flatten()[self.start :][: self.length].to(held)


def _cut(module: Shardable, config: dict[str, Any], device: torch.device) -> None:
    """Leave each rank its part of every weight, a layer at a time; the first rank alone has loaded them."""
    import deepspeed

    *blocks, base = module.units()
    network = cast(Any, module).network
    for unit in (*blocks, network):
        fill(unit, device)
        deepspeed.zero.Init(module=unit, config_dict_or_path=config)
    for reaching in (each for each in network.modules() if isinstance(each, _REACHING)):
        for parameter in reaching.parameters():
            deepspeed.zero.register_external_parameter(reaching, parameter)
    mark_shared(base)
