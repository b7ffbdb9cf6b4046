"""Servers in this process: over the embedded model, and over a network that says what it is told."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import openai
import torch
import uvicorn
from transformers import GenerationConfig, GlmConfig, GlmForCausalLM

from glm_lightning import templates
from glm_lightning.inference.batch import Speaker
from glm_lightning.inference.messages import conversation
from glm_lightning.inference.prompts import prompt_ids
from glm_lightning.inference.sampling import Sampling
from glm_lightning.serving.app import Settings, application
from glm_lightning.serving.engine import Engine, Limits
from glm_lightning.serving.library import Served, UnknownModelError
from glm_lightning.tokenizers import Tokenizer


class Running:
    """A server that runs, and how to call it."""

    def __init__(self, library: Any, engine: Engine, port: int, keys: tuple[str, ...]) -> None:
        self.library, self.engine, self.port = library, engine, port
        self.url = f"http://127.0.0.1:{port}"
        options = {"base_url": f"{self.url}/v1", "api_key": (*keys, "none")[0], "max_retries": 0, "timeout": 120}
        self.client = openai.OpenAI(**options)
        self.make_async = lambda: openai.AsyncOpenAI(**options)
        self.stop: Callable[[], None]


@contextlib.contextmanager
def running(library: Any, limits: Limits | None = None, **settings: Any) -> Iterator[Running]:
    engine = Engine(limits or Limits())
    app = application(library, engine, Settings(**settings))
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=20)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started:
        assert thread.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    made = Running(library, engine, listening.getsockname()[1], tuple(settings.get("keys", ())))

    def stop() -> None:
        server.should_exit = True
        thread.join(60)

    made.stop = stop
    try:
        yield made
    finally:
        stop()
        made.client.close()
        listening.close()
        assert not thread.is_alive()
        assert not engine._thread.is_alive()


class Parrot(GlmForCausalLM):
    """A network that goes on with rows as it was told: it finds a row's ids in its cache, as others find their past."""

    def __init__(self, vocab_size: int, *, seconds: float = 0.0) -> None:
        sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        super().__init__(GlmConfig(vocab_size=vocab_size, **sizes, head_dim=8, num_key_value_heads=1, pad_token_id=0))
        self.generation_config = GenerationConfig()
        self.told: dict[tuple[int, ...], list[int]] = {}
        self.seconds = seconds
        self.steps: list[int] = []

    def forward(self, input_ids, attention_mask=None, position_ids=None, cache=None, logits_to_keep=0, **kwargs):
        time.sleep(self.seconds)
        self.steps.append(len(input_ids))
        keys, _ = cache.update(input_ids[:, None, :, None].float(), input_ids[:, None, :, None].float(), 0)
        rows = keys[:, 0, :, 0].long()
        seen = torch.ones_like(rows) if attention_mask is None else attention_mask
        logits = torch.zeros(len(rows), 1, self.config.vocab_size)
        for row, (ids, mask) in enumerate(zip(rows, seen.bool(), strict=True)):
            logits[row, 0, self._next(ids[mask].tolist())] = 9.0
        return SimpleNamespace(logits=logits)

    def _next(self, ids: list[int]) -> int:
        for start, said in self.told.items():
            if tuple(ids[: len(start)]) == start and len(ids) - len(start) < len(said):
                return said[len(ids) - len(start)]
        return 0


class Told:
    """A library of one model, of any generation, that says what it is told."""

    def __init__(self, tokenizer: Tokenizer, name: str, *, context: int = 2048, seconds: float = 0.0) -> None:
        self.name, self.created = name, 1
        template = templates.find(name, tokenizer, "glm")
        self.network = Parrot(tokenizer.vocab_size, seconds=seconds).eval()
        self.served = Served(
            name=name,
            speaker=Speaker(self.network, pad_id=tokenizer.pad_id),
            tokenizer=tokenizer,
            template=template,
            max_context=context,
            stop_ids=tuple(tokenizer.control_id(stop) for stop in template.stop_tokens),
            sampling=Sampling(temperature=1.0),
            fingerprint="fp_0",
        )

    def names(self) -> list[str]:
        return [self.name]

    async def get(self, name: str | None) -> Served:
        if name not in (None, self.name):
            raise UnknownModelError(f"The model {name!r} does not exist.")
        return self.served

    def tell(self, text: str, messages: list[dict[str, Any]], tools: Any = None, **more: Any) -> None:
        """Say ``text`` and then stop, when ``messages`` are asked."""
        served = self.served
        (ids,) = prompt_ids([served.template.prompt(conversation(messages, tools), **more)], served.tokenizer)
        self.network.told[tuple(ids)] = [*served.tokenizer.encode([text])[0], served.stop_ids[0]]


def post(url: str, body: bytes, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """A request as it is, whatever it is."""
    request = urllib.request.Request(url, body, {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read()
