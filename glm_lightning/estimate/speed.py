"""How fast a device computes: two layers of a network, timed on the device itself."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from glm_lightning.estimate.memory import AUTOCAST
from glm_lightning.estimate.skeleton import shallow
from glm_lightning.models import Source
from glm_lightning.types import Batch, Loss

LAYERS, VOCABULARY = 2, 1024
"""Of the network that is timed: its layers are as wide as the real ones, its vocabulary need not be."""

POSITIONS = 512
_REPEATS = 2


def measured_rate(source: Source, loss: Callable[[nn.Module, Batch], Loss], *, precision: str, device: str) -> float:
    """Floating-point operations a second of the matrix products in a forward and backward pass over `POSITIONS`.

    Gradients go through the layers and not into their weights; the first pass, which prepares kernels, is left out.
    """
    network: nn.Module = shallow(source, num_layers=LAYERS, vocabulary=VOCABULARY)
    network.to(_dtype(precision)).to_empty(device=device).requires_grad_(False)
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            tensor.fill_(0.01)  # the numbers do not matter, as long as they are some
    embedding: nn.Module = network.get_input_embeddings()  # type: ignore[operator]
    embedding.register_forward_hook(_learns)
    batch = _batch().to(device)
    taken = []
    for _ in range(1 + _REPEATS):
        start = time.perf_counter()
        with torch.autocast(device, dtype=AUTOCAST.get(precision), enabled=precision in AUTOCAST):
            total = loss(network, batch).total
        total.backward()
        float(total.detach())  # waits for a GPU
        taken.append(time.perf_counter() - start)
    head: nn.Module = network.get_output_embeddings()  # type: ignore[operator]
    products = [module for module in network.modules() if isinstance(module, nn.Linear) and module is not head]
    weights = sum(module.weight.numel() for module in products)
    # 2 operations a weight and position forwards, 2 backwards
    return 4 * weights * POSITIONS / min(taken[1:])


def _dtype(precision: str) -> torch.dtype:
    names = {"64-true": torch.float64, "bf16": torch.bfloat16, "16": torch.float16}
    return next((dtype for name, dtype in names.items() if precision.startswith(name)), torch.float32)


def _learns(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
    return output.requires_grad_(True)


def _batch() -> Batch:
    """One row, of which the second half is learned."""
    ids = torch.randint(10, VOCABULARY, (1, POSITIONS), generator=torch.Generator().manual_seed(0))
    where = torch.arange(POSITIONS // 2, POSITIONS - 1)
    return Batch(ids, where, ids[0, where + 1], torch.tensor([POSITIONS]), step_tokens=len(where))
