"""What the service counts as it answers; `metrics.py` adds what is read off it when it is asked."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics

SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for every counter that says since when it counts


class Metrics:
    """Of one service: the registry is its own, since tests and programs may have several in a process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "comfyloop_requests",
            "HTTP requests by route and status.",
            ("route", "status"),
            registry=self.registry,
        )
        self.seconds = Histogram(
            "comfyloop_request_seconds",
            "Time from request to the last byte of the response.",
            ("route",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.tokens = Counter(
            "comfyloop_tokens", "Tokens read and written.", ("project", "kind"), registry=self.registry
        )
        self.first_token = Histogram(
            "comfyloop_first_token_seconds",
            "Time to the first token of streamed answers.",
            ("project",),
            buckets=SECONDS,
            registry=self.registry,
        )
