"""How much the database holds, for tests that count."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import Connection

from comfyloop.store import schema


def generations(conn: Connection, project: str) -> int:
    table = schema.generations
    return conn.scalar(sa.select(sa.func.count()).select_from(table).where(table.c.project == project)) or 0


def groups(conn: Connection, project: str) -> dict[str, int]:
    """Groups of samples, by the fold they are in."""
    table = schema.splits
    query = sa.select(table.c.fold, sa.func.count()).where(table.c.project == project).group_by(table.c.fold)
    return {"train": 0, "holdout": 0} | {fold: number for fold, number in conn.execute(query)}
