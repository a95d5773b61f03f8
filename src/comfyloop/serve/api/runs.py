"""/v1/runs: training runs, their progress and logs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from comfyloop.errors import Conflict
from comfyloop.records import Run, RunState
from comfyloop.serve.api.common import AskedProject, Limit
from comfyloop.serve.api.event_stream import EventStream
from comfyloop.serve.api.services import Services, Svc
from comfyloop.store import runs
from comfyloop.train import runners
from comfyloop.train.run.directory import RunDirectory, TrainState

router = APIRouter(tags=["runs"])

FOLLOW_SECONDS = 0.3
MOST_BYTES = 2**20

Offset = Annotated[int, Query(ge=0, lt=2**63, description="`next_offset` of the last call.")]

_ENDED = frozenset(state.value for state in TrainState if state.ended)


class RunList(BaseModel):
    items: list[Run]
    next_before: str | None = None


class RunDetail(BaseModel):
    run: Run
    status: dict[str, Any] | None
    """The trainer's own status.json: state, step, total_steps, loss, eta_seconds, ..."""


class RunLogLines(BaseModel):
    lines: list[dict[str, Any]]
    next_offset: int


@router.get("/v1/runs", summary="List runs, newest first")
def list_runs(
    services: Svc,
    project: AskedProject,
    state: RunState | None = None,
    before: Annotated[str | None, Query(description="`next_before` of the last page.")] = None,
    limit: Limit = 50,
) -> RunList:
    with services.store.read() as conn:
        found = runs.list_by(conn, project, state=state, before=before, limit=limit)
    return RunList(items=found, next_before=found[-1].id if len(found) == limit else None)


@router.get("/v1/runs/{id}", summary="Get a run and its progress")
def get_run(id: str, services: Svc) -> RunDetail:
    with services.store.read() as conn:
        run = runs.get(conn, id)
    return RunDetail(run=run, status=_status(run))


@router.get(
    "/v1/runs/{id}/log",
    summary="Read a run's log",
    response_model=RunLogLines,
    responses={200: {"content": {"application/json": {}, "text/event-stream": {}}}},
)
async def get_run_log(
    id: str,
    request: Request,
    services: Svc,
    offset: Offset = 0,
    tail: Annotated[int | None, Query(ge=1, le=10_000, description="Only the last so many lines.")] = None,
    follow: Annotated[bool, Query(description="Server-sent events until the run is over.")] = False,
) -> Response:
    """Lines of log.jsonl from `offset` (bytes) on; ask again with `next_offset`, or `follow`."""

    def read() -> Run:
        with services.store.read() as conn:
            return runs.get(conn, id)

    run = await run_in_threadpool(read)
    path = RunDirectory(run.path).log_file
    if follow:
        return EventStream(_follow(run, path, offset))
    lines, next_offset = await run_in_threadpool(_lines, path, offset)
    if tail is not None:
        lines = lines[-tail:]
    return Response(
        RunLogLines(lines=lines, next_offset=next_offset).model_dump_json(), media_type="application/json"
    )


@router.post("/v1/runs/{id}/hold", summary="Hold a run", status_code=202)
def hold_run(id: str, services: Svc) -> RunDetail:
    """It pauses within a step and keeps what it has learnt; it goes on when it is told to, not before."""
    run = _open_run(id, services, "There is nothing to hold.")
    runners.hold(run.path, by_hand=True)
    _tell(services, run, "holding")
    return RunDetail(run=run, status=_status(run))


@router.post("/v1/runs/{id}/resume", summary="Let a held run go on", status_code=202)
def resume_run(id: str, services: Svc) -> RunDetail:
    run = _open_run(id, services, "There is nothing to go on with.")
    runners.release(run.path, by_hand=True)
    _tell(services, run, "running")
    return RunDetail(run=run, status=_status(run))


def _open_run(id: str, services: Services, hint: str) -> Run:
    """Raises Conflict where the run is over."""
    with services.store.read() as conn:
        run = runs.get(conn, id)
    if not run.state.is_open:
        raise Conflict(f"The run {id!r} is over: it is {run.state}.", hint)
    return run


def _tell(services: Services, run: Run, state: str) -> None:
    services.controller.events.publish(
        {"type": "run.asked", "project": run.project, "run": run.id, "run_state": state}
    )


@router.post("/v1/runs/{id}/cancel", summary="Stop a run", status_code=202)
def cancel_run(id: str, services: Svc) -> RunDetail:
    """It stops within one step; its last checkpoint is valid."""
    run = _open_run(id, services, "There is nothing to cancel.")
    if services.controller.status(run.project).run == run.id:
        services.controller.cancel(run.project)
    else:  # started by hand: the file is the trainer's own sign
        RunDirectory(run.path).cancel_file.touch()
    return RunDetail(run=run, status=_status(run))


def _status(run: Run) -> dict[str, Any] | None:
    try:
        status = json.loads(RunDirectory(run.path).status_file.read_text("utf-8"))
    except (OSError, ValueError):  # not started yet
        return None
    return status if isinstance(status, dict) else None


def _lines(path: Path, offset: int) -> tuple[list[dict[str, Any]], int]:
    """Whole lines from `offset` on, and where the next one begins; one being written is left for later."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(MOST_BYTES)
    except OSError:
        return [], offset
    end = data.rfind(b"\n") + 1
    lines = []
    for line in data[:end].splitlines():
        try:
            parsed = json.loads(line)
        except ValueError:
            continue
        if isinstance(parsed, dict):
            lines.append(parsed)
    return lines, offset + end


async def _follow(run: Run, path: Path, offset: int) -> AsyncIterator[bytes]:
    while True:
        status = await run_in_threadpool(_status, run)
        over = run.finished_at is not None or (status is not None and status.get("state") in _ENDED)
        lines, offset = await run_in_threadpool(_lines, path, offset)
        for line in lines:
            yield f"id: {offset}\ndata: {json.dumps(line)}\n\n".encode()
        if over and not lines:
            yield f"event: end\ndata: {json.dumps(status)}\n\n".encode()
            return
        if not lines:
            await asyncio.sleep(FOLLOW_SECONDS)
