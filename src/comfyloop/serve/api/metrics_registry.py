"""Counters, gauges and histograms in Prometheus' text form (version 0.0.4)."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterator, Sequence

SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Labels = tuple[str, ...]


def _labels(names: Sequence[str], values: Sequence[str]) -> str:
    def escaped(value: str) -> str:
        return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")

    pairs = ",".join(f'{name}="{escaped(value)}"' for name, value in zip(names, values, strict=True))
    return f"{{{pairs}}}" if pairs else ""


class Family:
    """A metric that only grows (kind "counter") or goes up and down ("gauge"), a value per label set."""

    def __init__(self, name: str, doc: str, kind: str, labels: Sequence[str] = ()) -> None:
        self.name, self.doc, self.kind, self.labels = name, doc, kind, tuple(labels)
        self._lock = threading.Lock()
        self._values: dict[Labels, float] = {}

    def add(self, amount: float, *labels: str) -> None:
        with self._lock:
            self._values[labels] = self._values.get(labels, 0.0) + amount

    def set(self, values: dict[Labels, float]) -> None:
        """Replace all values, for gauges that are read off something at the time of asking."""
        with self._lock:
            self._values = dict(values)

    def lines(self) -> Iterator[str]:
        yield f"# HELP {self.name} {self.doc}"
        yield f"# TYPE {self.name} {self.kind}"
        with self._lock:
            values = sorted(self._values.items())
        for labels, value in values:
            yield f"{self.name}{_labels(self.labels, labels)} {value:g}"


class Histogram:
    """How often values fell below each bound, and their sum."""

    def __init__(self, name: str, doc: str, labels: Sequence[str], bounds: Sequence[float] = SECONDS) -> None:
        self.name, self.doc, self.labels, self.bounds = name, doc, tuple(labels), tuple(bounds)
        self._lock = threading.Lock()
        self._counts: dict[Labels, list[int]] = {}
        self._sums: dict[Labels, float] = {}

    def observe(self, value: float, *labels: str) -> None:
        with self._lock:
            counts = self._counts.setdefault(labels, [0] * (len(self.bounds) + 1))
            counts[bisect_left(self.bounds, value)] += 1
            self._sums[labels] = self._sums.get(labels, 0.0) + value

    def lines(self) -> Iterator[str]:
        yield f"# HELP {self.name} {self.doc}"
        yield f"# TYPE {self.name} histogram"
        with self._lock:
            rows = [(labels, list(counts), self._sums[labels]) for labels, counts in self._counts.items()]
        names = (*self.labels, "le")
        for labels, counts, total in sorted(rows):
            below = 0
            for bound, count in zip(self.bounds, counts, strict=False):
                below += count
                yield f"{self.name}_bucket{_labels(names, (*labels, f'{bound:g}'))} {below}"
            yield f"{self.name}_bucket{_labels(names, (*labels, '+Inf'))} {sum(counts)}"
            yield f"{self.name}_sum{_labels(self.labels, labels)} {total:.6f}"
            yield f"{self.name}_count{_labels(self.labels, labels)} {sum(counts)}"


class Metrics:
    """Everything that /metrics shows."""

    def __init__(self) -> None:
        self.requests = Family(
            "comfyloop_requests_total", "HTTP requests by route and status.", "counter", ("route", "status")
        )
        self.seconds = Histogram(
            "comfyloop_request_seconds", "Time from request to the last byte of the response.", ("route",)
        )
        self.tokens = Family(
            "comfyloop_tokens_total", "Tokens read and written.", "counter", ("project", "kind")
        )
        self.first_token = Histogram(
            "comfyloop_first_token_seconds", "Time to the first token of streamed answers.", ("project",)
        )
        self.running = Family(
            "comfyloop_requests_running", "Answers under way.", "gauge", ("project", "version")
        )
        self.live = Family("comfyloop_live_version", "Number of the live version.", "gauge", ("project",))
        self.ready = Family("comfyloop_ready", "1 when the live version answers.", "gauge", ("project",))
        self.swaps = Family("comfyloop_swaps_total", "Times that a live version was changed.", "counter")
        self.engine_starts = Family(
            "comfyloop_engine_starts_total", "Starts of an engine.", "counter", ("engine",)
        )

    def text(self) -> str:
        lines: list[str] = []
        for family in vars(self).values():
            lines.extend(family.lines())
        return "\n".join(lines) + "\n"
