"""Peak memory of loading a full-precision release into 4 bits, on random weights of a release's real shape.

    python tests/benchmarks/loading.py /tmp/chatglm3-random      # makes 12.5 GB there, loads it, prints JSON lines
    python tests/benchmarks/loading.py /tmp/chatglm3-random --quantize int8

What counts is anonymous memory (RssAnon): what lies in files that are mapped can be dropped by the system at any time.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from pathlib import Path

import torch

from glm_lightning.models.releases import CONFIGS

NUM_SHARDS = 7


def shapes() -> dict[str, tuple[int, ...]]:
    """Every tensor of ChatGLM3-6B under its official name, in the order of its files."""
    found: dict[str, tuple[int, ...]] = {
        "transformer.embedding.word_embeddings.weight": (65024, 4096),
        "transformer.rotary_pos_emb.inv_freq": (32,),
    }
    for i in range(28):
        layer = f"transformer.encoder.layers.{i}"
        found |= {
            f"{layer}.input_layernorm.weight": (4096,),
            f"{layer}.self_attention.query_key_value.weight": (4608, 4096),
            f"{layer}.self_attention.query_key_value.bias": (4608,),
            f"{layer}.self_attention.dense.weight": (4096, 4096),
            f"{layer}.post_attention_layernorm.weight": (4096,),
            f"{layer}.mlp.dense_h_to_4h.weight": (27392, 4096),
            f"{layer}.mlp.dense_4h_to_h.weight": (4096, 13696),
        }
    return found | {
        "transformer.encoder.final_layernorm.weight": (4096,),
        "transformer.output_layer.weight": (65024, 4096),
    }


def make(folder: Path) -> None:
    """Write the folder: seven shards of `.bin`, cut wherever a seventh is full."""
    folder.mkdir(parents=True)
    names, sizes = list(shapes()), {name: torch.Size(shape).numel() for name, shape in shapes().items()}
    full = sum(sizes.values()) / NUM_SHARDS
    files: dict[str, str] = {}
    part: dict[str, torch.Tensor] = {}
    for name in names:
        part[name] = torch.empty(shapes()[name], dtype=torch.float16).uniform_(-0.03, 0.03)
        done = sum(sizes[each] for each in names[: names.index(name) + 1])
        number = len(set(files.values())) + 1
        if done >= number * full - 1 or name == names[-1]:
            file = f"pytorch_model-{number:05}-of-{NUM_SHARDS:05}.bin"
            torch.save(part, folder / file)
            files |= dict.fromkeys(part, file)
            part = {}
    index = {"metadata": {"total_size": 2 * sum(sizes.values())}, "weight_map": files}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index), encoding="utf-8")
    (folder / "config.json").write_text(
        json.dumps(CONFIGS["chatglm3_6b"] | {"_name_or_path": "chatglm3-6b"}), encoding="utf-8"
    )


def anonymous() -> int:
    """Anonymous memory of this process in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no RssAnon")


class Peak(threading.Thread):
    """Samples anonymous memory every 10 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.highest = anonymous()

    def run(self) -> None:
        while True:
            self.highest = max(self.highest, anonymous())
            time.sleep(0.01)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quantize", choices=["nf4", "fp4", "int8", "none"], default="nf4")
    options = parser.parse_args()
    if not options.folder.exists():
        make(options.folder)
    from glm_lightning.models import Source

    source = Source(path=str(options.folder), quantize=None if options.quantize == "none" else options.quantize)
    source.check()
    shards = [file.stat().st_size for file in options.folder.glob("*.bin")]
    before, start = anonymous(), time.perf_counter()
    peak = Peak()
    peak.start()
    network = source.load()
    seconds = time.perf_counter() - start
    weights = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
    figures = {
        "benchmark": "loading",
        "quantize": options.quantize,
        "files_gb": sum(shards) / 1e9,
        "largest_shard_gb": max(shards) / 1e9,
        "weights_gb": weights / 1e9,
        "peak_anonymous_gb": (peak.highest - before) / 1e9,
        "seconds": seconds,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
