"""The state of each project's loop: one row per project."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import Connection

from comfyloop.records import Loop
from comfyloop.store import projects
from comfyloop.store.schema import loops


def get(conn: Connection, project: str) -> Loop:
    """The loop of a project, idle when it never ran.

    Raises:
        NotFound: There is no such project.
    """
    row = conn.execute(sa.select(loops).where(loops.c.project == project)).one_or_none()
    if row is None:
        projects.get(conn, project)
        return Loop(project=project)
    return Loop.model_validate(row._asdict())


def save(conn: Connection, loop: Loop) -> None:
    """Write a loop's row. Renew the lease in the same transaction, so that a controller that has lost its
    turn writes nothing.

    Raises:
        NotFound: There is no such project.
    """
    row = loop.model_dump()
    changed = conn.execute(loops.update().where(loops.c.project == loop.project).values(row)).rowcount
    if not changed:
        projects.get(conn, loop.project)
        conn.execute(loops.insert().values(row))
