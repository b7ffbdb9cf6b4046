"""What Prometheus is told."""

from __future__ import annotations

from typing import final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from glm_lightning.serving.engine import Engine
from glm_lightning.serving.exchange import Counts

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


@final
class Metrics:
    """Counters of a server, in a registry of its own."""

    def __init__(self, engine: Engine) -> None:
        self._registry = CollectorRegistry()
        registry = self._registry
        self._requests = Counter("glm_requests", "Requests by path and status", ["path", "status"], registry=registry)
        self._prompt = Counter("glm_prompt_tokens", "Tokens of prompts", ["model"], registry=registry)
        self._completion = Counter("glm_completion_tokens", "Tokens of answers", ["model"], registry=registry)
        first, whole = (
            Histogram(f"glm_{name}_seconds", what, ["model"], buckets=_SECONDS, registry=registry)
            for name, what in (
                ("time_to_first_token", "From request to first token"),
                ("request", "From request to the end of its answers"),
            )
        )
        self._first, self._whole = first, whole
        for name, what, value in (
            ("answers_running", "Answers that are being generated", lambda: engine.num_running),
            ("answers_waiting", "Answers that wait for a place", lambda: engine.num_waiting),
            ("cache_bytes", "Memory of keys and values", lambda: engine.num_bytes),
        ):
            Gauge(f"glm_{name}", what, registry=registry).set_function(value)

    def count(self, path: str, status: int) -> None:
        """Count a request that was answered or refused."""
        self._requests.labels(path, str(status)).inc()

    def report(self, model: str, counts: Counts) -> None:
        """Count what a request took."""
        self._prompt.labels(model).inc(counts.prompt)
        self._completion.labels(model).inc(counts.completion)
        self._whole.labels(model).observe(counts.seconds)
        if counts.first_seconds is not None:
            self._first.labels(model).observe(counts.first_seconds)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self._registry)
