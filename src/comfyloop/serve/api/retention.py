"""POST /v1/prune: old runs, snapshots and versions off the disk."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from comfyloop.records import Pruned
from comfyloop.serve.api.services import Svc

router = APIRouter(tags=["loop"])


@router.post("/v1/prune", summary="Remove what the settings keep_versions and keep_runs let go")
def prune(
    services: Svc, dry_run: Annotated[bool, Query(description="Only say what would go.")] = False
) -> Pruned:
    """Of all projects; the service does so by itself every hour. Records and gate reports stay."""
    with services.heavily("pruning"):
        return services.controller.prune(dry_run=dry_run)
