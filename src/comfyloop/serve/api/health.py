"""/healthz and /readyz: whether the service lives, whether it answers."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from comfyloop import __version__
from comfyloop.serve.api.services import Svc

router = APIRouter(tags=["health"])


class Health(BaseModel):
    status: Literal["ok"] = "ok"
    version: str = __version__
    """ComfyLoop's: clients of another minor version do not fit."""


class Readiness(BaseModel):
    ready: bool
    problems: dict[str, str] = {}
    """project -> why its live version does not answer."""
    engines: dict[str, str] = {}
    """base model -> state of its engine"""


@router.get("/healthz", summary="Whether the service lives")
async def healthz() -> Health:
    """Needs no token and no engine."""
    return Health()


@router.get(
    "/readyz",
    summary="Whether the live version of every project answers",
    response_model=Readiness,
    responses={503: {"model": Readiness, "description": "Not yet; `problems` says why."}},
)
async def readyz(services: Svc) -> JSONResponse:
    problems = services.router.problems()
    engines = {name: engine.state.value for name, engine in services.router.engines.items()}
    body = Readiness(ready=not problems, problems=problems, engines=engines)
    headers = {} if body.ready else {"Retry-After": "2"}
    return JSONResponse(body.model_dump(), 200 if body.ready else 503, headers)
