"""/v1/flags: what people are asked about feedback before it is learned."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from comfyloop import curate
from comfyloop.errors import NotFound
from comfyloop.records import Flag, Id, ProjectName
from comfyloop.serve.api.common import AskedProject
from comfyloop.serve.api.services import Services, Svc

router = APIRouter(tags=["feedback"])


class FlagList(BaseModel):
    items: list[Flag]


class FlagAnswer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    project: ProjectName | None = None
    keep: str = Field(
        max_length=128,
        description="The id of the feedback whose claim holds; `all`: they are meant so; `none`: none is learned.",
    )


@router.get("/v1/flags", summary="List what people are asked about feedback")
def list_flags(services: Svc, project: AskedProject) -> FlagList:
    """Opposite answers that two people want to the same question, and phrases that seem planted. None of it is learned
    until it is answered."""
    return _listed(services, project)


@router.post("/v1/flags/{id}", summary="Answer what is asked about feedback")
def answer_flag(id: Id, body: FlagAnswer, services: Svc) -> FlagList:
    """The next turn goes by it. What still is asked comes back."""
    project = services.router.project(body.project or services.settings.project).name
    found = {flag.id: flag for flag in _listed(services, project).items}
    if id not in found:
        there = f"There are: {', '.join(found)}." if found else "There are none."
        raise NotFound(f"Nothing that is called {id!r} is asked about the feedback of {project!r}.", there)
    curate.answer_flag(services.store, found[id], body.keep)
    return _listed(services, project)


def _listed(services: Services, project: str) -> FlagList:
    with services.heavily(f"a look for flags of {project}"):
        return FlagList(items=services.controller.flags(project))
