"""Rows and megabytes a second of the whole encoding, gate included, and of the way that other tools take.

    python tests/benchmarks/encoding.py MODEL DATA.jsonl                    # this project, two processes
    python tests/benchmarks/encoding.py MODEL DATA.jsonl --tool map         # datasets.map with apply_chat_template
    python tests/benchmarks/encoding.py MODEL DATA.jsonl --rows 200000      # the file repeated to so many rows
    python tests/benchmarks/encoding.py MODEL DATA.jsonl --distinct         # ... no two of which have the same texts

MODEL is a folder with a tokenizer and a chat template, DATA has rows of ``messages``. Each call prints one JSON line.
``seconds`` are those of the work alone: reading, parsing, judging, encoding, writing (`map`: reading, rendering,
encoding, writing); ``cpu_s`` are the processor's over all processes, which a busy machine changes less.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def main() -> None:
    """Encode once, and print the line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--tool", choices=("glm_lightning", "map"), default="glm_lightning")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--distinct", action="store_true")
    options = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if options.tool == "glm_lightning" else "false"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        with file.open("w", encoding="utf-8") as stream:
            stream.writelines(_rows(options.data, options.rows, distinct=options.distinct))
        encode = _ours if options.tool == "glm_lightning" else _map
        encode_it = encode(options.model, file, Path(folder) / "cache", options.processes)
        before, start = _cpu(), time.perf_counter()
        tokens = encode_it()
        seconds, cpu, size = time.perf_counter() - start, _cpu() - before, file.stat().st_size
    line = {
        "tool": options.tool,
        "processes": options.processes,
        "rows": options.rows,
        "distinct": options.distinct,
        "tokens": tokens,
        "seconds": round(seconds, 2),
        "cpu_s": round(cpu, 2),
        "rows_per_s": round(options.rows / seconds),
        "mb_per_s": round(size / seconds / 1e6, 2),
        "peak_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
    }
    print(json.dumps(line), flush=True)


def _rows(data: Path, count: int, *, distinct: bool) -> Iterator[str]:
    with data.open(encoding="utf-8") as stream:
        lines = stream.readlines()
    for number, line in enumerate(itertools.islice(itertools.cycle(lines), count)):
        if not distinct:
            yield line
            continue
        row = json.loads(line)
        for turn in row["messages"]:
            turn["content"] = f"{number} {turn['content']}"
        yield json.dumps(row, ensure_ascii=False) + "\n"


def _ours(model: Path, file: Path, cache_dir: Path, processes: int) -> Any:
    from glm_lightning import templates, tokenizers
    from glm_lightning.data import cache
    from glm_lightning.data.encoding import Encoder
    from glm_lightning.data.inputs import Inputs, sources_of

    tokenizer = tokenizers.load(model)
    encoder = Encoder(tokenizer=tokenizer, template=templates.find("auto", tokenizer, "glm"), max_length=1024)

    def encode() -> int:
        inputs = Inputs.of(sources_of(file, key="data.train"))
        folder, _ = cache.build(inputs.paths, format=inputs, encoder=encoder, folder=cache_dir, processes=processes)
        return int(json.loads((folder / cache.COUNTS).read_text(encoding="utf-8"))["tokens"])

    return encode


def _map(model: Path, file: Path, cache_dir: Path, processes: int) -> Any:
    import datasets
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(str(model))

    def encode_row(row: dict[str, Any]) -> dict[str, Any]:
        ids = tokenizer.apply_chat_template(row["messages"], return_dict=True)["input_ids"][:1024]
        return {"input_ids": ids, "length": len(ids)}

    def encode() -> int:
        rows = datasets.load_dataset("json", data_files=str(file), split="train", cache_dir=str(cache_dir))
        encoded = rows.map(encode_row, num_proc=processes if processes > 1 else None, remove_columns=rows.column_names)
        return int(sum(encoded["length"]))

    return encode


def _cpu() -> float:
    """Seconds of all processes that have ended, and of this one."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)


if __name__ == "__main__":
    main()
