"""/v1/busy: other programs of this machine say that a person waits for them, so that training holds."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from comfyloop.serve.api.services import Svc
from comfyloop.serve.routing.activity import LONGEST_SECONDS

router = APIRouter(tags=["loop"])

Who = Annotated[str, StringConstraints(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f]+$")]


class BusyCall(BaseModel):
    model_config = ConfigDict(extra="forbid")
    who: Who = Field(description="Names the client, e.g. `comfyui-8188`.")
    seconds: float = Field(
        default=5.0, ge=0, le=LONGEST_SECONDS, description="How long; say it again before that. 0: no longer."
    )


class BusyNow(BaseModel):
    busy: list[str]
    """Who is busy now; training goes on when nobody is."""


@router.get("/v1/busy", summary="Who is busy")
def get_busy(services: Svc) -> BusyNow:
    return BusyNow(busy=services.busy.who())


@router.post("/v1/busy", summary="Say that you are busy")
def say_busy(body: BusyCall, services: Svc) -> BusyNow:
    """A lease of a few seconds: a client that dies holds nothing up."""
    services.busy.say(body.who, body.seconds)
    return BusyNow(busy=services.busy.who())
