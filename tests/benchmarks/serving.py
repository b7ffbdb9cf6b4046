"""Tokens a second, time to the first token and memory of a server that streams to several clients.

    python tests/benchmarks/serving.py MODEL                         # `glm serve` with 1 and with 8 clients
    python tests/benchmarks/serving.py MODEL 1 8 32 --dtype float32
    python tests/benchmarks/serving.py MODEL 1 8 --peer transformers # and `transformers serve` on the same folder
    python tests/benchmarks/serving.py demo 64 --soak 120            # two minutes of correctness and memory

Every line has a server of its own, on a free port of this machine. Each client asks its prompts one after the other,
greedily, and reads the stream; all is asked once before it counts, as the first sight of a shape costs seconds on a
CPU. `tokens` are those of the texts that came, counted by the model's tokenizer for every tool alike; `first_token_s`
is from the request to the first text. Clients and server share the machine. The peer is a command, as a shell finds it.

`--soak` asks each prompt alone first. Then all clients ask for the given time whatever comes first, some leaving in the
middle; an answer that is another than it was alone, an error, or memory whose last third is above `SLACK` of its second
third ends it with 1.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import psutil

SLACK = 1.02
"""Growth that is the allocator's own."""

PROMPTS = [
    "Name three ways to reduce waste.",
    "What is the capital of France, and what is it known for?",
    "Write a short story about a lighthouse keeper who finds a message in a bottle.",
    "Explain to a child why the sky is blue.",
    "请介绍一下你自己。",
    "Give me a recipe for a simple tomato soup. List what is needed first, then the steps one by one.",
    "类型#裙*材质#棉*风格#简约*颜色#蓝色",
    "Summarise in one sentence: The quick brown fox jumps over the lazy dog, and the dog, who is far too tired to "
    "care, goes on sleeping in the sun until the evening.",
]


@dataclass(frozen=True)
class Server:
    """One that runs: where, and its process."""

    url: str
    process: psutil.Process

    def memory(self) -> float:
        """Resident memory in MiB."""
        return self.process.memory_info().rss / 2**20

    def peak(self) -> float:
        """The most that was ever resident, in GB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 / 1e9 for line in status if line.startswith("VmHWM:"))


@contextlib.contextmanager
def running(command: list[str], *, wait: float = 600.0) -> Iterator[Server]:
    """Start a server and yield it once it says that it is well; what it prints is shown if it does not."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile("w+") as said:
        started = subprocess.Popen([*command, "--host", "127.0.0.1", "--port", str(port)], stdout=said, stderr=said)
        try:
            deadline = time.monotonic() + wait
            while not _is_well(url):
                if started.poll() is not None or time.monotonic() > deadline:
                    said.seek(0)
                    raise SystemExit(f"{command}: does not answer\n{said.read()[-3000:]}")
                time.sleep(0.2)
            yield Server(url, psutil.Process(started.pid))
        finally:
            started.terminate()
            try:
                started.wait(60)
            except subprocess.TimeoutExpired:
                started.kill()


def _is_well(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


@contextlib.asynccontextmanager
async def client_of(server: Server) -> AsyncIterator[tuple[openai.AsyncOpenAI, str]]:
    """A client, and the name of the one model."""
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=600) as client:
        yield client, (await client.models.list()).data[0].id


@dataclass(frozen=True)
class Heard:
    """An answer: its text, and the seconds to the first piece of it."""

    text: str
    first_s: float


async def ask(
    client: openai.AsyncOpenAI, model: str, prompt: str, *, longest: int, leaves: float = 0.0
) -> Heard | None:
    """Stream a greedy answer; None where the client left, as it does with the probability ``leaves`` a piece."""
    begun, first_s, text = time.perf_counter(), 0.0, ""
    messages: Any = [{"role": "user", "content": prompt}]
    stream = await client.chat.completions.create(
        model=model, messages=messages, temperature=0, max_tokens=longest, stream=True
    )
    async with stream:
        async for chunk in stream:
            piece = (chunk.choices[0].delta.content or "") if chunk.choices else ""
            first_s = first_s or (time.perf_counter() - begun if piece else 0.0)
            text += piece
            if random.random() < leaves:
                return None
    return Heard(text, first_s)


async def load(server: Server, *, clients: int, requests: int, longest: int) -> tuple[list[Heard], float]:
    """All answers of one round, and the seconds that it took; the round before it does not count."""

    async def one(number: int) -> list[Heard | None]:
        prompts = [PROMPTS[(number + i) % len(PROMPTS)] for i in range(requests)]
        return [await ask(client, model, prompt, longest=longest) for prompt in prompts]

    async with client_of(server) as (client, model):
        for _ in range(2):
            begun = time.perf_counter()
            answers = await asyncio.gather(*map(one, range(clients)))
            seconds = time.perf_counter() - begun
    return [answer for each in answers for answer in each if answer is not None], seconds


def measure(tool: str, command: list[str], options: argparse.Namespace, *, clients: int) -> dict[str, Any]:
    """The line of one server under one load."""
    from glm_lightning.inference.loading import load_words

    tokenizer, _ = load_words(options.model)
    with running(command) as server:
        wanted = {"clients": clients, "requests": options.requests, "longest": options.tokens}
        answers, seconds = asyncio.run(load(server, **wanted))
        peak = server.peak()
    tokens = sum(map(len, tokenizer.encode([answer.text for answer in answers])))
    firsts = [answer.first_s for answer in answers]
    return {
        "tool": tool,
        "clients": clients,
        "answers": len(answers),
        "tokens": tokens,
        "seconds": round(seconds, 2),
        "tokens_per_s": round(tokens / seconds, 1),
        "first_token_s": {"median": round(statistics.median(firsts), 3), "worst": round(max(firsts), 3)},
        "peak_rss_gb": round(peak, 2),
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
    }


async def hold(server: Server, *, clients: int, seconds: float, longest: int) -> dict[str, Any]:
    """Ask for a while; what was heard, and memory."""
    lengths = (8, longest)
    counts = {"answers": 0, "left": 0, "wrong": 0, "errors": 0}
    memory = [server.memory()]

    async def one(number: int) -> None:
        rng = random.Random(number)
        while time.monotonic() < until:
            asked = rng.choice(PROMPTS), rng.choice(lengths)
            try:
                heard = await ask(client, model, asked[0], longest=asked[1], leaves=0.002)
            except openai.OpenAIError as error:
                counts["errors"] += 1
                print(f"{asked}: {error!r}", file=sys.stderr)
                continue
            counts["left" if heard is None else "answers"] += 1
            if heard is not None and heard.text != alone[asked]:
                counts["wrong"] += 1
                print(f"{asked}: {heard.text!r}, not {alone[asked]!r}", file=sys.stderr)

    async with client_of(server) as (client, model):
        alone = {}
        for prompt in PROMPTS:
            for length in lengths:
                alone[prompt, length] = (await ask(client, model, prompt, longest=length) or Heard("", 0)).text
        until = time.monotonic() + seconds
        going = asyncio.gather(*map(one, range(clients)))
        while not going.done():
            memory.append(server.memory())
            await asyncio.wait([going], timeout=seconds / 100)
        await going
    thirds = [round(max(memory[len(memory) * i // 3 : len(memory) * (i + 1) // 3])) for i in range(3)]
    start, middle, end = (round(memory[i]) for i in (0, len(memory) // 2, -1))
    return counts | {
        "rss_mib": {"start": start, "middle": middle, "end": end},
        "peak_rss_mib_by_third": thirds,
        "flat": thirds[2] <= SLACK * thirds[1],
    }


def soak(command: list[str], options: argparse.Namespace, *, clients: int) -> bool:
    """Print what came of it; whether all was well."""
    with running(command) as server:
        found = asyncio.run(hold(server, clients=clients, seconds=options.soak, longest=options.tokens))
    print(json.dumps({"benchmark": "soak of serving", "clients": clients, "seconds": options.soak} | found))
    return bool(found["flat"] and found["answers"] and not found["wrong"] + found["errors"])


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="what `glm serve` takes; with --peer, a model folder")
    parser.add_argument("clients", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--requests", type=int, default=2, help="of each client, one after the other")
    parser.add_argument("--tokens", type=int, default=64, help="longest answer")
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16"], default="auto")
    parser.add_argument("--peer", metavar="TRANSFORMERS", help="the `transformers` command to measure as well")
    parser.add_argument("--soak", type=float, metavar="SECONDS", help="correctness and memory instead of speed")
    options = parser.parse_intermixed_args()
    serve = ["serve", options.model, "--device", "cpu", "--dtype", options.dtype]
    own = [sys.executable, "-c", "from glm_lightning.cli import main; main()", *serve]
    if options.soak:
        sys.exit(not all(soak(own, options, clients=clients) for clients in options.clients))
    tools = {"glm serve": own}
    if options.peer:
        if shutil.which(options.peer) is None:
            parser.error(f"--peer {options.peer}: there is no such command")
        tools["transformers serve"] = [options.peer, *serve]
    for clients in options.clients:
        for tool, command in tools.items():
            print(json.dumps(measure(tool, command, options, clients=clients)), flush=True)


if __name__ == "__main__":
    main()
