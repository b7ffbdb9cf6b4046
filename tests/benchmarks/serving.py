"""Clients that stream answers from a served model: tokens a second and time to the first token, beside a peer.

    python tests/benchmarks/serving.py MODEL                         # glm serve, 1 and 8 clients
    python tests/benchmarks/serving.py MODEL --peer bin/transformers # and `transformers serve` of another environment
    python tests/benchmarks/serving.py MODEL 64 --soak 120           # two minutes: answers right, memory flat

Each client asks one of `PROMPTS` after the other, greedily, for TOKENS (64) tokens, `ROUNDS` times. A JSON line for
each server and number of clients: tokens a second over all clients, seconds to the first token (median and worst), peak
memory of the server's process. A soak asks until its time is over, in float32, compares each answer with the one that
the same prompt gets alone, and exits with 1 if one differs or memory grows by more than `SLACK` after the first third.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import psutil

PROMPTS = (
    "Write a short story about a lighthouse.",
    "Explain how bread is baked, step by step.",
    "What are the differences between cats and dogs?",
    "Give me advice on learning a new language.",
    "Describe a walk through an old town.",
    "How does a bicycle stay upright?",
    "List ideas for a rainy Sunday.",
    "Why is the sky blue?",
)
ROUNDS = 2
SLACK = 1.05

SERVE = "import sys; from glm_lightning.cli import main; sys.exit(main(['serve', *sys.argv[1:]]))"


@dataclass
class Answer:
    """What one request got."""

    prompt: str
    text: str
    tokens: int
    first: float  # seconds


def main() -> None:
    """Serve, ask, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("clients", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--tokens", type=int, default=64, help="tokens of an answer at most")
    parser.add_argument("--peer", help="the `transformers` command of another environment, to be measured, too")
    parser.add_argument("--soak", type=float, metavar="SECONDS")
    options = parser.parse_args()
    port = free_port()
    own = [sys.executable, "-c", SERVE, options.model, "--port", str(port)]
    if options.soak:
        with serving([*own, "--dtype", "float32"], port) as process:
            sys.exit(not asyncio.run(soak(process, port, options)))
    servers = {"glm serve": own}
    if options.peer:
        servers["transformers serve"] = [options.peer, "serve", "--host", "127.0.0.1", "--port", str(port)]
    for name, command in servers.items():
        with serving(command, port) as process:
            model = str(Path(options.model).resolve()) if name != "glm serve" else None
            asyncio.run(ask(port, 1, model=model, rounds=1, tokens=8))  # loads what is loaded lazily
            for clients in options.clients:
                line = {"server": name, "clients": clients, **measured(port, clients, model, options.tokens)}
                print(json.dumps(line | {"peak_rss_gb": round(peak(process), 2)}), flush=True)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@contextlib.contextmanager
def serving(command: list[str], port: int) -> Iterator[psutil.Process]:
    """The server while it runs; waits until it answers."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not answers(port):
            if process.poll() is not None:
                sys.exit(f"{' '.join(command)}: ended with {process.returncode}")
            time.sleep(0.2)
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(60)


def answers(port: int) -> bool:
    """Whether a server is there."""
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=2).status_code < 500
    except httpx.HTTPError:
        return False


def measured(port: int, clients: int, model: str | None, tokens: int) -> dict[str, float]:
    """One figure each."""
    start = time.perf_counter()
    replies = asyncio.run(ask(port, clients, model=model, rounds=ROUNDS, tokens=tokens))
    seconds = time.perf_counter() - start
    first = [reply.first for reply in replies]
    return {
        "tokens_per_s": round(sum(reply.tokens for reply in replies) / seconds, 1),
        "first_token_s": round(statistics.median(first), 2),
        "worst_first_token_s": round(max(first), 2),
    }


async def ask(port: int, clients: int, *, model: str | None, rounds: int, tokens: int) -> list[Answer]:
    """All answers that some clients get at the same time."""
    async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=600) as api:
        model = model or (await api.models.list()).data[0].id

        async def client(number: int) -> list[Answer]:
            turns = (PROMPTS[(number + turn) % len(PROMPTS)] for turn in range(rounds))
            return [await one(api, model, prompt, tokens) for prompt in turns]

        of_clients = await asyncio.gather(*(client(number) for number in range(clients)))
    return [answer for answers in of_clients for answer in answers]


async def one(api: openai.AsyncOpenAI, model: str, prompt: str, tokens: int) -> Answer:
    """One streamed answer; tokens are counted by the pieces that come."""
    start, first, pieces = time.perf_counter(), None, []
    stream = await api.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": prompt}],
        temperature=0,
        max_tokens=tokens,
        stream=True,
        stream_options={"include_usage": True},
    )
    usage = None
    async for chunk in stream:
        usage = chunk.usage or usage
        piece = chunk.choices[0].delta.content if chunk.choices else None
        if piece:
            first = first or time.perf_counter() - start
            pieces.append(piece)
    count = usage.completion_tokens if usage is not None else len(pieces)
    return Answer(prompt, "".join(pieces), count, first or time.perf_counter() - start)


async def soak(process: psutil.Process, port: int, options: argparse.Namespace) -> bool:
    """Whether all went well until the time was over."""
    clients, until = options.clients[0], time.monotonic() + options.soak
    expected = {
        answer.prompt: answer.text
        for answer in await ask(port, 1, model=None, rounds=len(PROMPTS), tokens=options.tokens)
    }
    wrong, count, memory = 0, 0, []
    while time.monotonic() < until:
        for answer in await ask(port, clients, model=None, rounds=2, tokens=options.tokens):
            count += 1
            wrong += answer.text != expected[answer.prompt]
        memory.append(process.memory_info().rss / 2**30)
    settled = max(memory[: max(1, len(memory) // 3)])
    line = {"clients": clients, "seconds": options.soak, "answers": count, "wrong": wrong}
    print(json.dumps(line | {"gib_first_third": round(settled, 3), "gib_most": round(max(memory), 3)}), flush=True)
    return not wrong and max(memory) <= SLACK * settled


def peak(process: psutil.Process) -> float:
    """Most resident memory so far, in GB."""
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1e6


if __name__ == "__main__":
    main()
