"""A person's changes to the preferences in words: their own text, or that one is not wanted.

The preferences that rules derive from edits are not stored, but computed each time.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import Connection

from comfyloop.store import projects
from comfyloop.store.schema import preferences


def by_id(conn: Connection, project: str) -> dict[str, str | None]:
    """The person's own text by the preference's id; None: it is not wanted."""
    query = sa.select(preferences.c.id, preferences.c.text).where(preferences.c.project == project)
    return {id: text for id, text in conn.execute(query.order_by(preferences.c.id))}


def put(conn: Connection, project: str, id: str, text: str | None) -> None:
    """Raises:
    NotFound: There is no such project.
    """
    projects.get(conn, project)
    delete(conn, project, id)
    conn.execute(preferences.insert().values(project=project, id=id, text=text))


def delete(conn: Connection, project: str, id: str) -> None:
    """Restore the rule's own text, if there is one."""
    conn.execute(preferences.delete().where(preferences.c.project == project, preferences.c.id == id))
