"""/sleep, /wake_up, /is_sleeping: engines give their memory back, as vLLM's do, by vLLM's routes."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel

from comfyloop.serve.api.services import Services, Svc
from comfyloop.serve.engines.protocol import Engine, sleeper_of
from comfyloop.serve.routing.names import ModelName

router = APIRouter(tags=["models"])

Named = Annotated[
    str | None, Query(description="The engine of this model alone, as requests name it; else every engine.")
]


class EngineRest(BaseModel):
    is_sleeping: bool
    can_sleep: bool
    sleep_after_seconds: float
    """Without a question, after which it sleeps by itself; 0: never."""
    wakes: int
    """Since it was started."""
    wake_seconds: float | None
    """That the last wake took."""


class Sleeping(BaseModel):
    is_sleeping: bool
    """Whether all that were asked for sleep."""
    engines: dict[str, EngineRest]
    """By base model; those that are starting or down are left out."""


@router.get("/is_sleeping", summary="Whether the engines sleep")
def is_sleeping(services: Svc, model: Named = None) -> Sleeping:
    return _told(_named(services, model))


@router.post("/sleep", summary="Have the engines give their memory back")
def sleep(
    services: Svc,
    model: Named = None,
    level: Annotated[
        int,
        Query(ge=1, le=2, description="1: weights wait in the processor's memory; 2: they are read again."),
    ] = 1,
) -> Sleeping:
    """Answers when they sleep. Requests that run are waited for; the first one after it wakes the engine."""
    engines = _named(services, model)
    for engine in engines.values():
        engine.client.sleeper.sleep(level)
    return _told(engines)


@router.post("/wake_up", summary="Wake the engines")
def wake_up(services: Svc, model: Named = None) -> Sleeping:
    """Answers when they are awake: before a question that is sure to come. Without this it would wake them itself."""
    engines = _named(services, model)
    for engine in engines.values():
        engine.client.sleeper.wake_up()
    return _told(engines)


def _named(services: Services, model: str | None) -> dict[str, Engine]:
    engines = services.router.engines
    if model is None:
        return engines
    project = services.router.project(ModelName.parse(model).project)
    return {name: engine for name, engine in engines.items() if name == project.base_model}


def _told(engines: dict[str, Engine]) -> Sleeping:
    rests = {}
    for name, engine in engines.items():
        if (sleeper := sleeper_of(engine)) is not None:
            rests[name] = EngineRest(
                is_sleeping=sleeper.is_sleeping,
                can_sleep=sleeper.can_sleep,
                sleep_after_seconds=sleeper.after if sleeper.can_sleep else 0.0,
                wakes=sleeper.wakes,
                wake_seconds=sleeper.wake_seconds,
            )
    return Sleeping(is_sleeping=bool(rests) and all(r.is_sleeping for r in rests.values()), engines=rests)
