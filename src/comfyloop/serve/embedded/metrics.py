"""Counters of the engine, as Prometheus text."""

from __future__ import annotations

import time
from collections import Counter, deque


class Histogram:
    """Observations in buckets, as Prometheus counts them. One thread writes."""

    def __init__(self, *bounds: float) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._sum += value
        for i, bound in enumerate(self._bounds):
            if value <= bound:
                self._counts[i] += 1
                return
        self._counts[-1] += 1

    def lines(self, name: str, help_text: str) -> list[str]:
        lines, total = [f"# HELP {name} {help_text}", f"# TYPE {name} histogram"], 0
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            lines.append(f'{name}_bucket{{le="{bound}"}} {total}')
        return [*lines, f"{name}_sum {self._sum:.6f}", f"{name}_count {total}"]


_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class Metrics:
    """Written by the model thread, read by `GET /metrics`."""

    def __init__(self) -> None:
        self.load_seconds = 0.0
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.answer_tokens = 0
        self.refused = 0
        self.kv_bytes = 0
        self.ended: Counter[str] = Counter()
        self.step = Histogram(*_SECONDS)
        self.first_token = Histogram(*_SECONDS)
        self.between_tokens = Histogram(*_SECONDS)
        self.batch = Histogram(1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
        self._recent: deque[float] = deque(maxlen=16)

    def finished(self, reason: str) -> None:
        self.ended[reason] += 1
        self._recent.append(time.monotonic())

    def recent_requests_per_second(self) -> float:
        if len(self._recent) < 2:
            return 0.0
        return (len(self._recent) - 1) / max(time.monotonic() - self._recent[0], 1e-3)

    def text(self, running: int, waiting: int, adapters: int) -> str:
        lines: list[str] = []
        for name, kind, help_text, value in (
            ("prompt_tokens_total", "counter", "Prompt tokens computed.", self.prompt_tokens),
            (
                "cached_prompt_tokens_total",
                "counter",
                "Prompt tokens taken from earlier prompts.",
                self.cached_tokens,
            ),
            ("answer_tokens_total", "counter", "Tokens generated.", self.answer_tokens),
            (
                "refused_requests_total",
                "counter",
                "Requests refused because the queue was full.",
                self.refused,
            ),
            ("running_requests", "gauge", "Requests being answered.", running),
            ("waiting_requests", "gauge", "Requests in the queue.", waiting),
            ("adapters", "gauge", "Adapters loaded.", adapters),
            ("kv_bytes", "gauge", "Memory of keys, values and image features.", self.kv_bytes),
            ("load_seconds", "gauge", "Seconds that loading the model took.", round(self.load_seconds, 3)),
        ):
            lines += [f"# HELP comfyloop_engine_{name} {help_text}", f"# TYPE comfyloop_engine_{name} {kind}"]
            lines.append(f"comfyloop_engine_{name} {value}")
        name = "comfyloop_engine_requests_total"
        lines += [f"# HELP {name} Requests that ended, by reason.", f"# TYPE {name} counter"]
        lines += [f'{name}{{reason="{reason}"}} {count}' for reason, count in sorted(self.ended.items())]
        lines += self.step.lines("comfyloop_engine_step_seconds", "Seconds of a decode step.")
        lines += self.first_token.lines(
            "comfyloop_engine_first_token_seconds", "From arrival to the first token."
        )
        lines += self.between_tokens.lines(
            "comfyloop_engine_between_tokens_seconds", "Between tokens of an answer."
        )
        lines += self.batch.lines("comfyloop_engine_batch_size", "Sequences decoded in one step.")
        return "\n".join(lines) + "\n"
