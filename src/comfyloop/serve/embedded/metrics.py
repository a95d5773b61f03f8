"""What the engine counts, for Prometheus."""

from __future__ import annotations

import time
from collections import deque

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_SEQUENCES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)

disable_created_metrics()  # type: ignore[no-untyped-call]


class EngineMetrics:
    """Written by the model thread, read by `GET /metrics`."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens computed.")
        self.cached_tokens = self._counter(
            "cached_prompt_tokens", "Prompt tokens taken from earlier prompts."
        )
        self.answer_tokens = self._counter("answer_tokens", "Tokens generated.")
        self.refused = self._counter("refused_requests", "Requests refused because the queue was full.")
        self._running = self._gauge("running_requests", "Requests being answered.")
        self._waiting = self._gauge("waiting_requests", "Requests in the queue.")
        self._adapters = self._gauge("adapters", "Adapters loaded.")
        self.kv_bytes = self._gauge("kv_bytes", "Memory of keys, values and image features.")
        self.load_seconds = self._gauge("load_seconds", "Seconds that loading the model took.")
        self.sleeping = self._gauge("sleeping", "1 while the memory of its model is given back.")
        self.wakes = self._histogram("wake_seconds", "Seconds of a wake.")
        self._ended = self._counter("requests", "Requests that ended, by reason.", "reason")
        self.step = self._histogram("step_seconds", "Seconds of a decode step.")
        self.first_token = self._histogram("first_token_seconds", "From arrival to the first token.")
        self.between_tokens = self._histogram("between_tokens_seconds", "Between tokens of an answer.")
        self.batch = self._histogram("batch_size", "Sequences decoded in one step.", _SEQUENCES)
        self._recent: deque[float] = deque(maxlen=16)

    def finished(self, reason: str) -> None:
        self._ended.labels(reason).inc()
        self._recent.append(time.monotonic())

    def recent_requests_per_second(self) -> float:
        if len(self._recent) < 2:
            return 0.0
        return (len(self._recent) - 1) / max(time.monotonic() - self._recent[0], 1e-3)

    def text(self, running: int, waiting: int, adapters: int) -> bytes:
        self._running.set(running)
        self._waiting.set(waiting)
        self._adapters.set(adapters)
        return generate_latest(self._registry)

    def _counter(self, name: str, doc: str, *labels: str) -> Counter:
        return Counter(f"comfyloop_engine_{name}", doc, labels, registry=self._registry)

    def _gauge(self, name: str, doc: str) -> Gauge:
        return Gauge(f"comfyloop_engine_{name}", doc, registry=self._registry)

    def _histogram(self, name: str, doc: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
        return Histogram(f"comfyloop_engine_{name}", doc, buckets=buckets, registry=self._registry)
