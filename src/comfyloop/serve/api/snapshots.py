"""/v1/snapshots: what was trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel

from comfyloop import curate
from comfyloop.errors import NotFound, StorageError
from comfyloop.records import Snapshot
from comfyloop.serve.api.common import AskedProject, Limit
from comfyloop.serve.api.services import Svc
from comfyloop.store import snapshots

router = APIRouter(tags=["snapshots"])


class SnapshotList(BaseModel):
    items: list[Snapshot]
    next_before: str | None = None


@router.get("/v1/snapshots", summary="List snapshots, newest first")
def list_snapshots(
    services: Svc,
    project: AskedProject,
    before: Annotated[str | None, Query(description="`next_before` of the last page.")] = None,
    limit: Limit = 50,
) -> SnapshotList:
    with services.store.read() as conn:
        found = snapshots.list_by(conn, project, before=before, limit=limit)
    return SnapshotList(items=found, next_before=found[-1].id if len(found) == limit else None)


@router.post("/v1/snapshots", summary="Build a snapshot", status_code=201)
def build_snapshot(services: Svc, project: AskedProject) -> Snapshot:
    """Curate what was fed back now, without training on it. The same feedback gives the same snapshot."""
    with services.heavily(f"a snapshot of {project}"):
        return services.controller.snapshot(project)


@router.get("/v1/snapshots/{id}", summary="Get a snapshot")
def get_snapshot(id: str, services: Svc, project: AskedProject) -> Snapshot:
    with services.store.read() as conn:
        return snapshots.get(conn, project, id)


@router.get("/v1/snapshots/{id}/diff", summary="Compare a snapshot with an earlier one")
def diff_snapshots(
    id: str,
    services: Svc,
    project: AskedProject,
    old: Annotated[
        str | None, Query(description="What it is compared with; default: the one made before it.")
    ] = None,
    limit: Limit = 100,
) -> curate.SnapshotDiff:
    """Samples that were added, removed, or moved between training and hold-out: how many, and the first `limit`."""
    with services.store.read() as conn:
        new = snapshots.get(conn, project, id)
        if old is None:
            before = snapshots.list_by(conn, project, before=id, limit=1)
            if not before:
                raise NotFound(f"No snapshot was made before {id}.", "Name the one to compare with: `old`.")
            earlier = before[0]
        else:
            earlier = snapshots.get(conn, project, old)
    with services.heavily(f"a comparison of snapshots of {project}"):
        return curate.diff(Path(earlier.path), Path(new.path), limit)


@router.get("/v1/snapshots/{id}/report", summary="Get a snapshot's report")
def get_snapshot_report(id: str, services: Svc, project: AskedProject) -> dict[str, Any]:
    """What was kept, and what was dropped and why, piece by piece."""
    with services.store.read() as conn:
        snapshot = snapshots.get(conn, project, id)
    path = Path(snapshot.path) / "report.json"
    try:
        report: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise StorageError(
            f"The report of snapshot {id} cannot be read: {error}.", "Build it again."
        ) from error
    return report
