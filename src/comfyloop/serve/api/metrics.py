"""GET /metrics: Prometheus text."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse

from comfyloop.serve.api.metrics_registry import CONTENT_TYPE
from comfyloop.serve.api.services import Svc

router = APIRouter(tags=["health"])


@router.get("/metrics", summary="Numbers for Prometheus", response_class=PlainTextResponse)
async def metrics(services: Svc) -> PlainTextResponse:
    table, versions = services.metrics, services.router
    problems = versions.problems()
    table.live.set({(project.name,): project.live for project in versions.projects})
    table.ready.set({(project.name,): float(project.name not in problems) for project in versions.projects})
    table.running.set({(name, str(number)): users for name, number, users in versions.loaded()})
    table.swaps.set({(): versions.swaps})
    table.engine_starts.set({(name,): engine.starts for name, engine in versions.engines.items()})
    return PlainTextResponse(table.text(), media_type=CONTENT_TYPE)
