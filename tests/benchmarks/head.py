"""Memory and time of the output layer and its loss at the vocabularies of real releases, ours and the usual way.

    python tests/benchmarks/head.py                 # 1,024 supervised positions
    python tests/benchmarks/head.py 4096 --device cuda

The usual way multiplies all hidden states by the head, takes the logits in float32 and calls torch's cross-entropy, as
transformers does. Both in bfloat16 with a frozen head, forwards and backwards, each in a process of its own. A JSON
line for each vocabulary and way: ``gib`` at the peak beyond the head and the hidden states, ``seconds`` the best of
three, ``loss`` a token.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable

import torch
from loading import Peak, anonymous
from torch import Tensor

from glm_lightning.losses import linear_cross_entropy
from glm_lightning.models.releases import CONFIGS

RELEASES = ("chatglm3_6b", "glm_4_9b_chat")
WAYS = ("ours", "usual")


def ours(states: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """The sum in chunks."""
    return linear_cross_entropy(states, head, None, targets).total


def usual(states: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """The sum over all logits."""
    return torch.nn.functional.cross_entropy((states @ head.T).float(), targets, reduction="sum")


def measure(release: str, way: str, positions: int, device: str) -> None:
    """One line."""
    vocabulary, width = (int(CONFIGS[release][key]) for key in ("padded_vocab_size", "hidden_size"))
    torch.manual_seed(0)
    head = (torch.randn(vocabulary, width, dtype=torch.bfloat16) * 0.02).to(device)
    states = torch.randn(positions, width, dtype=torch.bfloat16).to(device).requires_grad_()
    targets = torch.randint(vocabulary, (positions,)).to(device)
    function: Callable[[Tensor, Tensor, Tensor], Tensor] = {"ours": ours, "usual": usual}[way]
    before, seconds = taken(device), []
    watch = Peak()
    watch.start()
    for _ in range(3):
        start = time.perf_counter()
        total = function(states, head, targets)
        total.backward()
        loss = float(total.detach()) / positions
        seconds.append(time.perf_counter() - start)
    line = {"release": release, "vocabulary": vocabulary, "positions": positions, "way": way}
    most = torch.cuda.max_memory_allocated() if device == "cuda" else watch.highest
    found = {"gib": round((most - before) / 2**30, 3), "seconds": round(min(seconds), 3), "loss": round(loss, 4)}
    print(json.dumps(line | found), flush=True)


def taken(device: str) -> int:
    """Bytes now."""
    return torch.cuda.memory_allocated() if device == "cuda" else anonymous()


def main() -> None:
    """All of them, each in its own process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("positions", type=int, nargs="?", default=1024)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    for release in RELEASES:
        for way in WAYS:
            process = spawn.Process(target=measure, args=(release, way, options.positions, options.device))
            process.start()
            process.join()


if __name__ == "__main__":
    main()
