"""Serialises writers where the order matters."""

from __future__ import annotations

import zlib

import sqlalchemy as sa
from sqlalchemy import Connection


def one_at_a_time(conn: Connection, what: str) -> None:
    """Block others that request `what` until the transaction of `conn` ends.

    On SQLite a write transaction is alone already. PostgreSQL hands out sequence numbers before the commit:
    without this a reader could see number 10, remember it as the newest, and never see a 9 committed later.
    """
    if conn.dialect.name == "postgresql":
        key = zlib.crc32(f"comfyloop:{what}".encode())
        conn.execute(sa.select(sa.func.pg_advisory_xact_lock(key)))
