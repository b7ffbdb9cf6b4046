"""Peak memory of `glm export --merge` against the size of the model, of its files and of its layers.

    python tests/benchmarks/merging.py /tmp/merging                 # a model of 2.7 GB in bfloat16, made there
    python tests/benchmarks/merging.py /tmp/merging --shard-size 250MB

The model and the adapter (LoRA of rank 16 on every linear layer) are random numbers; the tokenizer is the embedded
one's. What counts is anonymous memory (RssAnon): what lies in files that are mapped can be dropped by the system at any
time. A JSON line at the end; ``beyond_gb`` is the peak without what the process had before.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from pathlib import Path

import peft
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, GlmConfig

from glm_lightning.export import export_model
from glm_lightning.export.writing import shard_bytes
from glm_lightning.inference.loading import load_words

CONFIG = GlmConfig(
    hidden_size=2048, intermediate_size=6912, num_hidden_layers=24, num_attention_heads=16, num_key_value_heads=4,
    head_dim=128, vocab_size=32768, pad_token_id=0, dtype=torch.bfloat16,
)  # fmt: skip
RANK = 16


def make(folder: Path) -> None:
    """The model, a file for each layer and one for the rest, and the adapter beside it."""
    model, adapter = folder / "model", folder / "adapter"
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(CONFIG, dtype=torch.bfloat16)
    model.mkdir(parents=True)
    CONFIG.architectures = [type(network).__name__]
    CONFIG.save_pretrained(model)
    load_words("demo")[0].save(model)
    files: dict[str, dict[str, torch.Tensor]] = {}
    shapes = {name: parameter.shape for name, parameter in network.named_parameters()}
    for name in shapes:
        part = name.split(".")[2] if ".layers." in name else "rest"
        files.setdefault(f"model-{part}.safetensors", {})[name] = torch.empty(0)
    for file, tensors in files.items():
        made = {name: torch.randn(shapes[name], dtype=torch.bfloat16) * 0.02 for name in tensors}
        save_file(made, model / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, tensors in files.items() for name in tensors}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    targets = [name.removesuffix(".weight") for name in shapes if name.endswith("proj.weight")]
    config = peft.LoraConfig(
        r=RANK, target_modules=[target.rpartition(".")[2] for target in targets], base_model_name_or_path=str(model)
    )
    config.task_type = "CAUSAL_LM"
    config.save_pretrained(adapter)
    update = {}
    for target in targets:
        outputs, inputs = shapes[f"{target}.weight"]
        update[f"base_model.model.{target}.lora_A.weight"] = torch.randn(RANK, inputs) * 0.02
        update[f"base_model.model.{target}.lora_B.weight"] = torch.randn(outputs, RANK) * 0.02
    save_file(update, adapter / "adapter_model.safetensors")


def anonymous() -> float:
    """GB of anonymous memory now."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1e6


def main() -> None:
    """Make what is not there, export, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shard-size", default="500MB")
    options = parser.parse_args()
    if not (options.folder / "adapter" / "adapter_model.safetensors").exists():
        make(options.folder)
    done, seen, before = threading.Event(), [0.0], anonymous()

    def watch() -> None:
        while not done.wait(0.01):
            seen[0] = max(seen[0], anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    out = options.folder / f"out-{int(time.time())}"
    exported = export_model(options.folder / "adapter", out, shard_size=shard_bytes(options.shard_size))
    done.set()
    watcher.join()
    sizes = [file.stat().st_size / 1e9 for file in (options.folder / "model").glob("*.safetensors")]
    line = {"model_gb": sum(sizes), "largest_layer_gb": min(sizes), "rest_gb": max(sizes)}
    line |= {"shard_gb": shard_bytes(options.shard_size) / 1e9, "beyond_gb": seen[0] - before}
    rounded = {name: round(value, 3) for name, value in (line | {"seconds": time.perf_counter() - start}).items()}
    print(json.dumps(rounded | {"told": exported.notice}, ensure_ascii=False))


if __name__ == "__main__":
    main()
