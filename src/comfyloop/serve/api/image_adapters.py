"""The file of a version's image adapter, for clients that apply it themselves (ComfyUI does)."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Header, Response
from fastapi.responses import FileResponse

from comfyloop import integrity
from comfyloop.errors import NotFound
from comfyloop.records import BASE
from comfyloop.serve.api.common import AskedProject, VersionNumber
from comfyloop.serve.api.services import Svc
from comfyloop.serve.routing.names import version_name
from comfyloop.store import versions

router = APIRouter(tags=["versions"])


@router.get(
    "/v1/versions/{number}/image-adapter",
    summary="Download a version's image LoRA",
    response_class=FileResponse,
    responses={
        200: {
            "content": {"application/octet-stream": {}},
            "description": "A safetensors file with kohya keys; the ETag is its SHA-256.",
        },
        304: {"description": "It is the file that `If-None-Match` names."},
    },
)
def get_image_adapter(
    number: VersionNumber,
    services: Svc,
    project: AskedProject,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """As ComfyUI's own LoraLoader reads it. 404 when the version changes the text side alone."""
    name = version_name(project, number)
    path, version = None, None
    if number != BASE:
        with services.store.read() as conn:
            version = versions.get(conn, project, number)
            path = version.image_adapter
    if path is None or version is None:
        raise NotFound(f"{name} has no image adapter.", "Use the image model as it is.")
    file = Path(path)
    if not file.is_file():
        raise NotFound(
            f"The image adapter of {name} is gone from the disk ({file}).", "Promote another version."
        )
    stat = file.stat()
    tag = f'"{_sha256(file, stat.st_mtime_ns, stat.st_size)}"'
    if if_none_match is not None and tag in if_none_match:
        return Response(status_code=304, headers={"ETag": tag})
    with services.store.read() as conn:
        integrity.check(conn, version)
    return FileResponse(
        file,
        media_type="application/octet-stream",
        filename=f"{project}-v{number}.safetensors",
        headers={"ETag": tag},
    )


@functools.lru_cache(maxsize=64)
def _sha256(file: Path, changed_ns: int, size: int) -> str:
    """Of the file's content; time and size only tell whether it must be read again."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
