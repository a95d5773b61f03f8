"""GET /metrics: Prometheus text."""

from __future__ import annotations

from collections.abc import Iterator

from fastapi import APIRouter
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from comfyloop.serve.api.services import Svc
from comfyloop.serve.engines.protocol import sleeper_of
from comfyloop.serve.routing.router import Router

router = APIRouter(tags=["health"])


class _Now(Collector):
    """What is read off the service at the time of asking."""

    def __init__(self, versions: Router) -> None:
        self._versions = versions

    def collect(self) -> Iterator[Metric]:
        problems = self._versions.problems()
        live = GaugeMetricFamily("comfyloop_live_version", "Number of the live version.", labels=["project"])
        ready = GaugeMetricFamily("comfyloop_ready", "1 when the live version answers.", labels=["project"])
        for project in self._versions.projects:
            live.add_metric([project.name], project.live)
            ready.add_metric([project.name], float(project.name not in problems))
        running = GaugeMetricFamily(
            "comfyloop_requests_running", "Answers under way.", labels=["project", "version"]
        )
        for name, number, users in self._versions.loaded():
            running.add_metric([name, str(number)], users)
        starts = CounterMetricFamily("comfyloop_engine_starts", "Starts of an engine.", labels=["engine"])
        sleeping = GaugeMetricFamily(
            "comfyloop_engine_sleeping", "1 while an engine has given its memory back.", labels=["engine"]
        )
        wakes = CounterMetricFamily(
            "comfyloop_engine_wakes", "Wakes of an engine since it was started.", labels=["engine"]
        )
        seconds = GaugeMetricFamily(
            "comfyloop_engine_wake_seconds", "Seconds that an engine's last wake took.", labels=["engine"]
        )
        for name, engine in self._versions.engines.items():
            starts.add_metric([name], engine.starts)
            if (sleeper := sleeper_of(engine)) is None:
                continue
            sleeping.add_metric([name], sleeper.is_sleeping)
            wakes.add_metric([name], sleeper.wakes)
            if sleeper.wake_seconds is not None:
                seconds.add_metric([name], sleeper.wake_seconds)
        swaps = CounterMetricFamily(
            "comfyloop_swaps", "Times that a live version was changed.", value=self._versions.swaps
        )
        yield from (live, ready, running, swaps, starts, sleeping, wakes, seconds)


@router.get("/metrics", summary="Numbers for Prometheus", response_class=Response)
async def metrics(services: Svc) -> Response:
    now = CollectorRegistry()
    now.register(_Now(services.router))
    text = generate_latest(services.metrics.registry) + generate_latest(now)
    return Response(text, media_type=CONTENT_TYPE_LATEST)
