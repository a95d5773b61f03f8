"""GET /v1/generations: what was asked and answered."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel

from comfyloop.records import Generation
from comfyloop.serve.api.common import AskedProject, Limit, Seq
from comfyloop.serve.api.services import Svc
from comfyloop.store import generations
from comfyloop.store.pages import PAGE_BYTES

router = APIRouter(tags=["generations"])


class GenerationList(BaseModel):
    items: list[Generation]
    next_before: int | None = None


@router.get("/v1/generations", summary="List generations, newest first")
def list_generations(
    services: Svc,
    project: AskedProject,
    before: Annotated[Seq | None, Query(description="`next_before` of the last page.")] = None,
    version: Annotated[int | None, Query(ge=0, lt=2**31, description="Only those of this version.")] = None,
    limit: Limit = 50,
) -> GenerationList:
    """`next_before` is null on the last page. A page has fewer than `limit` items where they are large."""
    with services.store.read() as conn:
        found = generations.list_by(
            conn, project, before_seq=before, version=version, limit=limit, max_bytes=PAGE_BYTES
        )
        last = found[-1][0] if found else None
        more = last is not None and (
            len(found) == limit
            or generations.list_by(conn, project, before_seq=last, version=version, limit=1)
        )
    return GenerationList(items=[generation for _, generation in found], next_before=last if more else None)


@router.get("/v1/generations/{id}", summary="Get one generation")
def get_generation(id: str, services: Svc) -> Generation:
    """By the `id` of a chat answer, or its header X-ComfyLoop-Generation."""
    with services.store.read() as conn:
        return generations.get(conn, id)
