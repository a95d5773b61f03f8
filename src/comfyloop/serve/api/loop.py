"""/v1/loop: where a project's loop stands."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from comfyloop.records import LoopStatus, ProjectName
from comfyloop.serve.api.common import AskedProject
from comfyloop.serve.api.services import Services, Svc

router = APIRouter(tags=["loop"])


class LoopCall(BaseModel):
    model_config = ConfigDict(extra="forbid")
    project: ProjectName | None = None


class TurnCall(LoopCall):
    consolidate: bool = Field(
        default=False,
        description="Start from the base models and learn everything, not on from the live version.",
    )


def _project(services: Services, body: LoopCall | None) -> str:
    asked = body.project if body is not None else None
    return services.router.project(asked or services.settings.project).name


@router.get("/v1/loop", summary="Where the loop stands")
def get_loop(services: Svc, project: AskedProject) -> LoopStatus:
    return services.controller.status(project)


@router.post("/v1/loop", summary="Start a turn by hand", status_code=202)
def start_loop(services: Svc, body: TurnCall | None = None) -> LoopStatus:
    """Curate, train, judge and promote what is new, without waiting for the trigger."""
    project = _project(services, body)
    services.controller.request(project, consolidate=body is not None and body.consolidate)
    return services.controller.status(project)


@router.post("/v1/loop/cancel", summary="Stop the present turn", status_code=202)
def cancel_loop(services: Svc, body: LoopCall | None = None) -> LoopStatus:
    """What was trained so far stays on the disk."""
    project = _project(services, body)
    services.controller.cancel(project)
    return services.controller.status(project)
