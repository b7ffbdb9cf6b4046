"""Peak memory of merging an adapter into networks of several depths, written in files of several sizes.

    python tests/benchmarks/merging.py                             # 8 and 32 layers, files of 100 and 400 MB
    python tests/benchmarks/merging.py 8 64 --shards 50MB 1GB

The networks are random, in the GLM architecture and bfloat16, with LoRA on every linear layer. Prints a JSON line for
each depth and size, from a process of its own. `part_mb` is the largest part that is in memory at a time (a layer, the
embedding or the head), as float32, in which it is merged. What counts is anonymous memory (RssAnon) above that before
the merge: what lies in files that are mapped can be dropped by the system at any time.
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import peft
import torch
from loading import Peak, anonymous
from transformers import AutoModelForCausalLM

from glm_lightning.export import export_model
from glm_lightning.export.writing import shard_bytes
from glm_lightning.models import Source
from glm_lightning.models.source import DEMO

MB = 1e6


def make(folder: Path, *, layers: int) -> None:
    """A base in ``base`` with the tokenizer of the embedded model, and an adapter in ``adapter``."""
    torch.manual_seed(0)
    config = copy.deepcopy(Source(DEMO).config)
    config.update({"vocab_size": 32768, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": layers})
    config.update({"num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 64, "tie_word_embeddings": False})
    network = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    network.save_pretrained(folder / "base", max_shard_size="500MB")
    for file in Path(Source(DEMO).location).glob("*token*"):
        shutil.copy(file, folder / "base")
    network.name_or_path = str(folder / "base")
    adapted = peft.get_peft_model(network, peft.LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.02)
    adapted.save_pretrained(folder / "adapter")


def merge(folder: Path, *, shard: str) -> dict[str, float | str]:
    """The line of one merge."""
    base = Source(str(folder / "base"))
    modules = base.skeleton.get_submodule("model.layers.0"), base.skeleton.get_input_embeddings()
    files = sum(file.stat().st_size for file in (folder / "base").glob("*.safetensors"))
    before, begun = anonymous(), time.perf_counter()
    peak = Peak()
    peak.start()
    export_model(folder / "adapter", folder / "out", shard_size=shard_bytes(shard))
    seconds = time.perf_counter() - begun
    written = [file.stat().st_size for file in (folder / "out").glob("*.safetensors")]
    return {
        "benchmark": "merging",
        "layers": base.config.num_hidden_layers,
        "weights_mb": round(files / MB),
        "part_mb": round(max(4 * sum(p.numel() for p in module.parameters()) for module in modules) / MB),
        "shard": shard,
        "files": len(written),
        "peak_anonymous_mb": round((peak.highest - before) / MB),
        "seconds": round(seconds, 1),
    }


def main() -> None:
    """Make, merge, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("layers", type=int, nargs="*", default=[8, 32])
    parser.add_argument("--shards", nargs="+", default=["100MB", "400MB"], metavar="SIZE")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_intermixed_args()
    if options.folder:
        print(json.dumps(merge(options.folder, shard=options.shards[0])), flush=True)
        return
    for layers in options.layers:
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder), layers=layers)
            for shard in options.shards:
                subprocess.run([sys.executable, __file__, "--folder", folder, "--shards", shard], check=True)
                shutil.rmtree(Path(folder) / "out")


if __name__ == "__main__":
    main()
