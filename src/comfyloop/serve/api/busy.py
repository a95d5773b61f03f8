"""/v1/busy: other programs of this machine say that a person waits for them, so that training holds."""

from __future__ import annotations

import logging
from typing import Annotated

from fastapi import APIRouter, BackgroundTasks
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from comfyloop.errors import ComfyLoopError
from comfyloop.serve.api.services import Services, Svc
from comfyloop.serve.engines.protocol import sleeper_of
from comfyloop.serve.routing.activity import LONGEST_SECONDS
from comfyloop.store import runs
from comfyloop.train.run.directory import RunDirectory

log = logging.getLogger(__name__)

QUIET_SECONDS = 5.0
"""An engine makes room that nobody has asked for so long."""

router = APIRouter(tags=["loop"])

Who = Annotated[str, StringConstraints(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f]+$")]


class BusyCall(BaseModel):
    model_config = ConfigDict(extra="forbid")
    who: Who = Field(description="Names the client, e.g. `comfyui-8188`.")
    seconds: float = Field(
        default=5.0, ge=0, le=LONGEST_SECONDS, description="How long; say it again before that. 0: no longer."
    )
    memory_bytes: int = Field(
        default=0,
        ge=0,
        lt=2**63,
        description="What it lacks of the device's memory: who can give theirs back does so at once.",
    )


class BusyNow(BaseModel):
    busy: list[str]
    """Who is busy now; training goes on when nobody is."""
    memory_bytes: int
    """What they lack of the device's memory."""
    run_memory_bytes: int
    """What the run that is under way takes of it, as far as that is known: else what the last run took."""


@router.get("/v1/busy", summary="Who is busy")
def get_busy(services: Svc) -> BusyNow:
    return _now(services)


@router.post("/v1/busy", summary="Say that you are busy")
def say_busy(body: BusyCall, services: Svc, after: BackgroundTasks) -> BusyNow:
    """A lease of a few seconds: a client that dies holds nothing up. Where one lacks memory, a run steps aside and an
    engine that may sleep, and is not asked, sleeps."""
    services.busy.say(body.who, body.seconds, body.memory_bytes)
    if body.seconds and body.memory_bytes:
        after.add_task(_make_room, services)
    return _now(services)


def _make_room(services: Services) -> None:
    for name, engine in services.router.engines.items():
        sleeper = sleeper_of(engine)
        if sleeper is None or not sleeper.after:
            continue
        try:
            sleeper.sleep_when_quiet(QUIET_SECONDS)
        except ComfyLoopError as error:
            log.warning("The engine of %s was to make room, and does not: %s", name, error)


def _now(services: Services) -> BusyNow:
    return BusyNow(
        busy=services.busy.who(),
        memory_bytes=services.busy.memory_bytes(),
        run_memory_bytes=_memory_of_run(services),
    )


def _memory_of_run(services: Services) -> int:
    with services.store.read() as conn:
        newest = [
            run for project in services.router.projects for run in runs.list_by(conn, project.name, limit=2)
        ]
    for run in sorted(newest, key=lambda run: (run.state.is_open, run.created_at), reverse=True):
        if taken := RunDirectory(run.path).read_status().memory_bytes:
            return taken
    return 0
