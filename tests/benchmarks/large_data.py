"""Memory of the processes while a file of gigabytes is encoded, and the seconds that a second start on it takes.

    python tests/benchmarks/large_data.py MODEL DATA.jsonl FOLDER                   # 2 GB of rows into FOLDER, encoded
    python tests/benchmarks/large_data.py MODEL DATA.jsonl FOLDER --gigabytes 0.5   # less of it
    python tests/benchmarks/large_data.py MODEL DATA.jsonl FOLDER --epochs 10       # a plan of more epochs

MODEL is a folder with a tokenizer and a chat template, DATA has rows of ``messages``. They are repeated, each with
another number in its texts, so that no two say the same. FOLDER keeps the rows and the cache: where they are there
already, both starts are second ones. Prints a JSON line now and then: anonymous memory (RssAnon, what is mapped from
files can be dropped by the system at any time) of the first process and of those that encode; then one for each start.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

SAMPLE_SECONDS = 2.0
TOLD_SECONDS = 60.0


def main() -> None:
    """Write the rows, start twice, print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--start", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    file = options.folder / "rows.jsonl"
    if options.start:
        print(json.dumps(start(options.model, file, options.folder / "cache", epochs=options.epochs)))
        return
    if not file.is_file():
        options.folder.mkdir(parents=True, exist_ok=True)
        write(file, options.data, size=int(options.gigabytes * 1e9))
    for name in ("first", "second"):
        print(json.dumps({"start": name, "file_gb": file.stat().st_size / 1e9} | watched([*sys.argv, "--start"])))


def write(file: Path, data: Path, *, size: int) -> None:
    """Write rows until there are ``size`` bytes."""
    part = file.with_suffix(".part")
    with part.open("w", encoding="utf-8") as stream:
        for row in distinct(data):
            if stream.tell() >= size:
                break
            stream.writelines(row)
    part.rename(file)


def distinct(data: Path) -> Iterator[list[str]]:
    """The rows again and again, a few hundred lines at a time."""
    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    numbered = enumerate(itertools.cycle(rows))
    while True:
        lines = []
        for number, row in itertools.islice(numbered, 256):
            turns = [turn | {"content": f"{number} {turn['content']}"} for turn in row["messages"]]
            lines.append(json.dumps({"messages": turns}, ensure_ascii=False) + "\n")
        yield lines


def start(model: Path, file: Path, cache_dir: Path, *, epochs: int) -> dict[str, Any]:
    """What a run does before its network is loaded, as `training.build` does it."""
    begun = time.perf_counter()
    from glm_lightning import templates, tokenizers
    from glm_lightning.data.module import DataModule

    imported = time.perf_counter()
    tokenizer = tokenizers.load(model)
    data = DataModule(train=str(file), val="auto", cache_dir=str(cache_dir))
    splits = data.load(tokenizer, templates.find("auto", tokenizer, "glm"))
    loaded = time.perf_counter()
    plan = data.schedule(world_size=1, accumulate="auto", epochs=epochs)
    next(plan.micro_batches(0))
    planned = time.perf_counter()
    data.description()
    data.state_dict()
    described = time.perf_counter()
    return {
        "imports_s": round(imported - begun, 2),
        "load_s": round(loaded - imported, 2),
        "plan_s": round(planned - loaded, 2),
        "describe_s": round(described - planned, 2),
        "seconds": round(described - imported, 2),
        "encoded": not splits.train.cached,
        "rows": splits.train.num_rows,
        "tokens": int(splits.train.lengths.sum()),
    }


def watched(command: list[str]) -> dict[str, Any]:
    """The figures that a start prints, with the memory of its processes."""
    with subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True) as process:
        watcher = Watcher(process.pid)
        watcher.start()
        assert process.stdout is not None
        printed = process.stdout.read()
    if process.returncode:
        raise SystemExit(process.returncode)
    return json.loads(printed) | watcher.figures()


class Watcher(threading.Thread):
    """Samples anonymous memory of a process and of those that it has started."""

    def __init__(self, process: int) -> None:
        super().__init__(daemon=True)
        self._process = process
        self._samples: list[list[int]] = []  # MiB: the first process, then the others, the largest first

    def run(self) -> None:
        begun = told = time.monotonic()
        while found := self._sample():
            self._samples.append(found)
            now = time.monotonic()
            if now - told > TOLD_SECONDS:
                told = now
                print(json.dumps({"second": round(now - begun), "anonymous_mib": found}), flush=True)
            time.sleep(SAMPLE_SECONDS)

    def _sample(self) -> list[int]:
        try:
            children = psutil.Process(self._process).children()
            others = sorted(filter(None, (anonymous(each.pid) for each in children)), reverse=True)
            first = anonymous(self._process)
        except psutil.NoSuchProcess:
            return []
        return [first, *others] if first else []

    def figures(self) -> dict[str, Any]:
        """The most of each process while there were others, in each quarter of that time; and the most afterwards."""
        encoding = [each for each in self._samples if len(each) > 1]
        alone = [each[0] for each in self._samples if len(each) == 1]
        quarters = [encoding[len(encoding) * i // 4 : len(encoding) * (i + 1) // 4] for i in range(4)]
        return {
            "encoding_mib": [_largest(quarter) for quarter in quarters if quarter],
            "alone_mib": max(alone, default=0),
        }


def _largest(samples: list[list[int]]) -> list[int]:
    return [max(column) for column in itertools.zip_longest(*samples, fillvalue=0)]


def anonymous(process: int) -> int:
    """Anonymous memory in MiB; 0 of a process that has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) // 1024 for line in lines if line.startswith("RssAnon:")), 0)


if __name__ == "__main__":
    main()
