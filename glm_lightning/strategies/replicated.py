"""A whole network on every device, gradients averaged."""

from __future__ import annotations

from typing import Any, final

from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from torch import nn
from torch.nn.parallel import DistributedDataParallel


@final
class Replicated(DDPStrategy):
    """Lightning's DDP that sends nothing but the gradients of what is trained, once an optimizer step.

    torch's own would also send the frozen base to every rank at the start, and all buffers (rotary frequencies, a
    mixture's routing bias) with every forward pass: every rank has them from the same files.
    """

    strategy_name = "replicated"

    def __init__(self) -> None:
        # Gradients lie in the buckets that are sent: no copy of them.
        super().__init__(forward_sync_buffers=False, gradient_as_bucket_view=True)

    def _setup_model(self, model: nn.Module) -> DistributedDataParallel:
        frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
        kept: Any = DistributedDataParallel
        kept._set_params_and_buffers_to_ignore_for_model(model, [*frozen, *(name for name, _ in model.named_buffers())])
        return super()._setup_model(model)


StrategyRegistry.register(Replicated.strategy_name, Replicated, description=Replicated.__doc__)
