"""/v1/versions: trained results, promoted and rolled back."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from comfyloop.errors import NotFound
from comfyloop.records import GateReport, ProjectName, Version, VersionState
from comfyloop.serve.api.common import AskedProject, Limit, VersionNumber
from comfyloop.serve.api.services import Svc
from comfyloop.serve.routing.names import version_name
from comfyloop.serve.routing.promotion import Promotion
from comfyloop.store import versions
from comfyloop.store.pages import PAGE_BYTES

router = APIRouter(tags=["versions"])


class VersionList(BaseModel):
    live: int
    canary: int = Field(0, description="The version that answers `canary_share` of the conversations.")
    canary_share: float = 0.0
    items: list[Version]
    next_before: int | None = None


class Promoted(BaseModel):
    """What is live now, what was before, and the seconds that each step took."""

    project: str
    number: int
    previous: int
    seconds: dict[str, float]

    @classmethod
    def of(cls, promotion: Promotion) -> Promoted:
        return cls(
            project=promotion.project,
            number=promotion.number,
            previous=promotion.previous,
            seconds=dict(promotion.seconds),
        )


class Rollback(BaseModel):
    model_config = ConfigDict(extra="forbid")
    project: ProjectName | None = None
    to: int | None = Field(default=None, ge=0, lt=2**31, description="Default: what was live before.")


@router.get("/v1/versions", summary="List versions, newest first")
def list_versions(
    services: Svc,
    project: AskedProject,
    state: VersionState | None = None,
    before: Annotated[int | None, Query(ge=0, lt=2**31)] = None,
    limit: Limit = 100,
) -> VersionList:
    with services.store.read() as conn:
        found = versions.list_by(conn, project, state=state, before=before, limit=limit, max_bytes=PAGE_BYTES)
        last = found[-1].number if found else None
        more = last is not None and (
            len(found) == limit or versions.list_by(conn, project, state=state, before=last, limit=1)
        )
    found_project = services.router.project(project)
    return VersionList(
        live=found_project.live,
        canary=found_project.canary,
        canary_share=found_project.canary_share,
        items=found,
        next_before=last if more else None,
    )


@router.get("/v1/versions/{number}", summary="Get a version")
def get_version(number: VersionNumber, services: Svc, project: AskedProject) -> Version:
    """With its lineage and gate report."""
    with services.store.read() as conn:
        return versions.get(conn, project, number)


@router.post("/v1/versions/{number}/promote", summary="Make a version live")
def promote_version(
    number: VersionNumber,
    services: Svc,
    project: AskedProject,
    force: Annotated[bool, Query(description="Also when the gate rejected it.")] = False,
    canary: Annotated[
        float | None,
        Query(ge=0, lt=1, description="Only for this share of the conversations; 0 takes that back."),
    ] = None,
) -> Promoted:
    """Load, verify, warm up, flip; requests that run finish on their version. 0 is the base model."""
    if canary is not None:
        return Promoted.of(services.router.canary(project, number, canary))
    return Promoted.of(services.router.promote(project, number, force=force))


@router.post("/v1/versions/{number}/gate", summary="Judge a version again")
def gate_version(number: VersionNumber, services: Svc, project: AskedProject) -> GateReport:
    """Against the live version, on the held-out items of the snapshot it was trained from."""
    with services.heavily(f"a gate of {project}"):
        return services.controller.gate(project, number)


@router.get("/v1/versions/{number}/gate", summary="Get what the gate said of a version")
def get_gate(number: VersionNumber, services: Svc, project: AskedProject) -> GateReport:
    """The report that was kept; nothing is judged again. 404 when the version was never judged."""
    with services.store.read() as conn:
        report = versions.get(conn, project, number).gate
    if report is None:
        raise NotFound(
            f"{version_name(project, number)} was not judged yet.",
            "POST /v1/versions/{number}/gate judges a version.",
        )
    return report


@router.get(
    "/v1/versions/{number}/sheet",
    summary="Get the contact sheet of a version's gate",
    response_class=Response,
    responses={
        200: {"content": {"image/png": {}}, "description": "Live beside candidate, at the same seeds."}
    },
)
def get_sheet(number: VersionNumber, services: Svc, project: AskedProject) -> Response:
    """What both image sides drew of the prompts that their text sides wrote. 404 when none was drawn."""
    with services.store.read() as conn:
        gate = versions.get(conn, project, number).gate
    if gate is None or gate.sheet is None:
        raise NotFound(
            f"{version_name(project, number)} has no contact sheet: its image side was not judged.",
            "POST /v1/versions/{number}/gate judges a version again.",
        )
    return Response(services.store.blobs.get(gate.sheet), media_type="image/png")


@router.post("/v1/rollback", summary="Go back to the version before")
def rollback(services: Svc, body: Rollback | None = None) -> Promoted:
    wanted = body or Rollback()
    project = services.router.project(wanted.project or services.settings.project).name
    return Promoted.of(services.router.rollback(project, wanted.to))
