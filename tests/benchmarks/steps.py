"""Seconds of a LoRA step's forward and backward pass as transformers writes the layers, as they run here, and compiled.

    python tests/benchmarks/steps.py MODEL                      # the first 10 layers, on the CPU, in float32
    python tests/benchmarks/steps.py MODEL --layers 30 --bf16

The three take turns on the same batches in one process, so that a machine that slows down slows all of them; LoRA's own
product and attention are the same in all, the head and the optimizer are left out. A JSON line for each: ``seconds``
the median of a batch of each shape, ``first`` of the first pass over all shapes, ``norm`` of all gradients.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from pathlib import Path
from typing import Any

import peft
import torch
from transformers import AutoModelForCausalLM

from glm_lightning.methods.fused import fuse
from glm_lightning.models import compiling, cpu_rotary, elementwise, training_attention

WAYS = ("written", "ours", "compiled")
SHAPES = ((5, 192), (8, 128), (3, 320))


def network(folder: Path, layers: int, dtype: torch.dtype, way: str) -> Any:
    """The decoder with LoRA on its linear layers."""
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    base.model.layers = base.model.layers[:layers]
    training_attention.use(base)
    if way != "written":
        cpu_rotary.use(base)
        elementwise.use(base)
    torch.manual_seed(0)
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    fuse(adapted)
    if way == "compiled":
        compiling.compile_layers(adapted)
    return adapted.train()


def main() -> None:
    """All of them, in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a folder of GlmForCausalLM")
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--rounds", type=int, default=8)
    options = parser.parse_args()
    dtype = torch.bfloat16 if options.bf16 else torch.float32
    networks = {way: network(options.model, options.layers, dtype, way) for way in WAYS}
    batches = [torch.randint(0, 30_000, shape) for shape in SHAPES]

    def step(way: str, ids: torch.Tensor) -> tuple[float, float]:
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16) if options.bf16 else contextlib.nullcontext():
            states = networks[way].base_model.model.model(input_ids=ids, use_cache=False).last_hidden_state
        states.float().square().mean().backward()
        seconds = time.perf_counter() - start
        norm = torch.nn.utils.get_total_norm([p.grad for p in networks[way].parameters() if p.grad is not None])
        networks[way].zero_grad()
        return seconds, float(norm)

    first = {way: [step(way, ids) for ids in batches] for way in WAYS}
    found: dict[tuple[str, int], list[float]] = {}
    for _ in range(options.rounds):
        for number, ids in enumerate(batches):
            for way in WAYS:
                found.setdefault((way, number), []).append(step(way, ids)[0])
    for way in WAYS:
        medians = [round(statistics.median(found[way, number]), 3) for number in range(len(SHAPES))]
        line = {"way": way, "shapes": SHAPES, "seconds": medians, "threads": torch.get_num_threads()}
        of_first = {"first": round(sum(seconds for seconds, _ in first[way]), 1), "norm": round(first[way][-1][1], 6)}
        print(json.dumps(line | of_first), flush=True)


if __name__ == "__main__":
    main()
