"""/healthz and /readyz: whether the service lives, whether it answers."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable
from typing import Literal, TypeVar

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from comfyloop import __version__
from comfyloop.errors import ComfyLoopError
from comfyloop.serve.api.services import Services, Svc
from comfyloop.serve.engines.protocol import sleeper_of

router = APIRouter(tags=["health"])

PATIENCE_SECONDS = 4.0


class Health(BaseModel):
    status: Literal["ok"] = "ok"
    version: str = __version__
    """ComfyLoop's: clients of another minor version do not fit."""


class Readiness(BaseModel):
    ready: bool
    problems: dict[str, str] = {}
    """project -> why its live version does not answer."""
    storage: str = ""
    """Why nothing can be stored; empty when it can."""
    engines: dict[str, str] = {}
    """base model -> state of its engine"""
    sleeping: list[str] = []
    """Base models whose engines have given their memory back: the next question wakes them."""


@router.get("/healthz", summary="Whether the service lives")
async def healthz() -> Health:
    """Needs no token and no engine."""
    return Health()


T = TypeVar("T")


async def _within(answer: Awaitable[T], late: T) -> T:
    try:
        return await asyncio.wait_for(answer, PATIENCE_SECONDS)
    except TimeoutError:
        return late


def _storage(services: Services) -> str:
    """Why the database or the home directory cannot be used; empty when they can."""
    try:
        services.store.probe()
        probe = services.settings.home / f".probe.{secrets.token_hex(4)}"
        probe.write_bytes(b"1")
        probe.unlink()
    except ComfyLoopError as error:
        return str(error)
    except OSError as error:
        return f"The folder {services.settings.home} cannot be written: {error.strerror}."
    return ""


@router.get(
    "/readyz",
    summary="Whether the live version of every project answers",
    response_model=Readiness,
    responses={503: {"model": Readiness, "description": "Not yet; `problems` says why."}},
)
async def readyz(services: Svc) -> JSONResponse:
    """It asks the engines and the database at this moment, and writes a byte to the disk."""
    problems, storage = await asyncio.gather(
        _within(run_in_threadpool(services.router.problems), {"": "The engines do not answer in time."}),
        _within(run_in_threadpool(_storage, services), "The database or the disk does not answer in time."),
    )
    engines = {name: engine.state.value for name, engine in services.router.engines.items()}
    sleepers = {name: sleeper_of(engine) for name, engine in services.router.engines.items()}
    body = Readiness(
        ready=not problems and not storage,
        problems=problems,
        storage=storage,
        engines=engines,
        sleeping=[name for name, sleeper in sleepers.items() if sleeper is not None and sleeper.is_sleeping],
    )
    headers = {} if body.ready else {"Retry-After": "2"}
    return JSONResponse(body.model_dump(), 200 if body.ready else 503, headers)
