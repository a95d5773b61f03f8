"""Snapshots: immutable sets of samples, named by the hash of their content."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import Connection

from comfyloop.errors import Conflict, NotFound
from comfyloop.records import Snapshot
from comfyloop.store.locks import one_at_a_time
from comfyloop.store.schema import snapshots


def add(conn: Connection, snapshot: Snapshot) -> Snapshot:
    """Store a snapshot and return it, or the stored one when the same content was stored before.

    Raises:
        Conflict: The id is known with other numbers of samples: it is not the hash of its content.
    """
    one_at_a_time(conn, "snapshots")
    stored = find(conn, snapshot.project, snapshot.id)
    if stored is None:
        conn.execute(
            snapshots.insert().values(
                project=snapshot.project, id=snapshot.id, body=snapshot.model_dump_json()
            )
        )
        return snapshot
    if (stored.train, stored.holdout, stored.replay) != (snapshot.train, snapshot.holdout, snapshot.replay):
        raise Conflict(f"The snapshot {snapshot.id!r} exists already with other content.")
    return stored


def find(conn: Connection, project: str, id: str) -> Snapshot | None:
    query = sa.select(snapshots.c.body).where(snapshots.c.project == project, snapshots.c.id == id)
    body = conn.scalar(query)
    return None if body is None else Snapshot.model_validate_json(body)


def get(conn: Connection, project: str, id: str) -> Snapshot:
    """Raises:
    NotFound: With the newest that exist.
    """
    snapshot = find(conn, project, id)
    if snapshot is None:
        ids = [each.id for each in list_by(conn, project, limit=5)]
        there = f"The newest are: {', '.join(ids)}." if ids else "There are none yet."
        raise NotFound(f"The project {project!r} has no snapshot {id!r}.", there)
    return snapshot


def list_by(conn: Connection, project: str, *, before: str | None = None, limit: int = 50) -> list[Snapshot]:
    """The newest first; the last id is the next page's `before`."""
    query = sa.select(snapshots.c.body).where(snapshots.c.project == project)
    if before is not None:
        mark = sa.select(snapshots.c.seq).where(snapshots.c.project == project, snapshots.c.id == before)
        query = query.where(snapshots.c.seq < mark.scalar_subquery())
    bodies = conn.scalars(query.order_by(snapshots.c.seq.desc()).limit(limit))
    return [Snapshot.model_validate_json(body) for body in bodies]
