"""Bundles: a version as a file for others, and theirs as candidates here."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool

from comfyloop.records import Version
from comfyloop.registry.archive import disk_error
from comfyloop.registry.contents import BundleOptions
from comfyloop.registry.manifest import Include, Manifest, SuiteScores
from comfyloop.serve.api.common import AskedProject, VersionNumber
from comfyloop.serve.api.services import Svc

router = APIRouter(tags=["versions"])


class Contents(BaseModel):
    """What a bundle would hold: its files with their sizes."""

    manifest: Manifest
    files: dict[str, int]


class ImportedVersion(BaseModel):
    version: Version
    manifest: Manifest
    trust: str = Field(description="How the key that signed it is known here, in a sentence.")


class BundleRequest(BaseModel):
    """What a bundle is to hold beside what every bundle holds."""

    include: tuple[Include, ...] = Field(
        default=(), description="Pictures and prompts: packed only where they are asked for."
    )
    licence: str = Field(default="", max_length=100, description="SPDX id, such as apache-2.0.")
    licence_text: str = Field(default="", max_length=200_000)
    suites: tuple[SuiteScores, ...] = Field(default=(), max_length=100, description="For the card.")

    @property
    def wanted(self) -> BundleOptions:
        return BundleOptions(self.include, self.licence, self.licence_text, self.suites)


@router.post("/v1/versions/{number}/bundle/contents", summary="Say what a bundle of a version would hold")
def bundle_contents(
    number: VersionNumber, services: Svc, project: AskedProject, body: BundleRequest | None = None
) -> Contents:
    """Nothing is written."""
    manifest, pieces = services.controller.gather(project, number, (body or BundleRequest()).wanted)
    return Contents(manifest=manifest, files={piece.name: piece.size for piece in pieces})


@router.post(
    "/v1/versions/{number}/bundle",
    summary="Download a version as a bundle",
    response_class=FileResponse,
    responses={
        200: {"content": {"application/zip": {}}, "description": "A signed .comfyloop file."},
    },
)
def export_bundle(
    number: VersionNumber, services: Svc, project: AskedProject, body: BundleRequest | None = None
) -> FileResponse:
    """A zip of safetensors, card, gate report and lineage, signed with this service's key."""
    with services.heavily(f"a bundle of {project}"):
        file = services.controller.export(project, number, (body or BundleRequest()).wanted)
    return FileResponse(
        file,
        media_type="application/zip",
        filename=f"{project}-{number}.comfyloop",
        background=BackgroundTask(file.unlink, missing_ok=True),
    )


@router.post("/v1/versions/{number}/evaluation", summary="Evaluate a version beside its base model")
def evaluate_version(number: VersionNumber, services: Svc, project: AskedProject) -> list[SuiteScores]:
    """On the general suites and on what is held out; for the card of a bundle, which is given it as `suites`."""
    with services.heavily(f"an evaluation of {project}"):
        return services.controller.evaluate(project, number)


@router.post(
    "/v1/bundles",
    summary="Import a bundle as a candidate",
    status_code=201,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def import_bundle(
    request: Request,
    services: Svc,
    project: AskedProject,
    trust_new_key: Annotated[
        bool, Query(description="Take another key than the one that its publisher had before.")
    ] = False,
) -> ImportedVersion:
    """Checked whole before anything of it is kept. It goes live only after the gate has judged it here."""
    file = services.settings.home / "bundles" / f"{uuid.uuid4().hex}.upload"
    try:
        await _keep(request, file)
        imported = await run_in_threadpool(
            services.controller.adopt, project, file, trust_new_key=trust_new_key
        )
    finally:
        file.unlink(missing_ok=True)
    return ImportedVersion(version=imported.version, manifest=imported.manifest, trust=imported.trust)


async def _keep(request: Request, file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("xb") as handle:
            async for chunk in request.stream():
                await run_in_threadpool(handle.write, chunk)
    except OSError as error:
        raise disk_error(file, error) from error
