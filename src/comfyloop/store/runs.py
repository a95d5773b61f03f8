"""Training runs and their states."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import Connection

from comfyloop.errors import Conflict, NotFound
from comfyloop.records import Run, RunState, now
from comfyloop.store import projects
from comfyloop.store.schema import runs

_OVER = {RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED}
_NEXT = {
    RunState.QUEUED: {RunState.RUNNING, RunState.FAILED, RunState.CANCELLED},
    RunState.RUNNING: _OVER,
    RunState.SUCCEEDED: set(),
    RunState.FAILED: set(),
    RunState.CANCELLED: set(),
}


def add(conn: Connection, run: Run) -> None:
    """Raises:
    NotFound: Its project does not exist.
    Conflict: Its id is taken.
    """
    projects.get(conn, run.project)
    if conn.scalar(sa.select(runs.c.seq).where(runs.c.id == run.id)) is not None:
        raise Conflict(f"The run {run.id!r} exists already.")
    conn.execute(runs.insert().values(run.model_dump()))


def get(conn: Connection, id: str) -> Run:
    """Raises:
    NotFound: With the newest that exist.
    """
    row = conn.execute(sa.select(*_FIELDS).where(runs.c.id == id)).one_or_none()
    if row is None:
        ids = list(conn.scalars(sa.select(runs.c.id).order_by(runs.c.seq.desc()).limit(5)))
        there = f"The newest are: {', '.join(ids)}." if ids else "There are none yet."
        raise NotFound(f"There is no run {id!r}.", there)
    return Run.model_validate(row._asdict())


def list_by(
    conn: Connection,
    project: str,
    *,
    state: RunState | None = None,
    before: str | None = None,
    limit: int = 50,
) -> list[Run]:
    """The newest first; the last id is the next page's `before`."""
    query = sa.select(*_FIELDS).where(runs.c.project == project)
    if state is not None:
        query = query.where(runs.c.state == state)
    if before is not None:
        query = query.where(runs.c.seq < sa.select(runs.c.seq).where(runs.c.id == before).scalar_subquery())
    rows = conn.execute(query.order_by(runs.c.seq.desc()).limit(limit))
    return [Run.model_validate(row._asdict()) for row in rows]


def set_state(conn: Connection, id: str, state: RunState, error: str = "") -> Run:
    """Move a run on; `finished_at` is set when it is over. The state it is in already changes nothing.

    Raises:
        NotFound: There is no such run.
        Conflict: A run that is over cannot go on, a started one cannot be queued again.
    """
    locked = conn.scalar(sa.select(runs.c.state).where(runs.c.id == id).with_for_update())
    run = get(conn, id)
    if locked == state:
        return run
    if state not in _NEXT[run.state]:
        raise Conflict(f"The run {id!r} is {run.state}; it cannot become {state}.", "Start a new run.")
    finished = now() if state in _OVER else None
    conn.execute(runs.update().where(runs.c.id == id).values(state=state, error=error, finished_at=finished))
    return get(conn, id)


_FIELDS = [runs.c[name] for name in Run.model_fields]
