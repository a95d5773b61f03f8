"""Leases: each name has one holder at a time, which must renew the lease before it expires.

Times are the database's, so that machines with different clocks agree.
"""

from __future__ import annotations

import time

import sqlalchemy as sa
from sqlalchemy import Connection

from comfyloop.store.locks import one_at_a_time
from comfyloop.store.schema import leases


def acquire(conn: Connection, name: str, owner: str, seconds: float) -> bool:
    """Take a lease that is free, expired or the owner's own; False while another owner holds it."""
    one_at_a_time(conn, f"lease:{name}")
    at = _clock(conn)
    row = conn.execute(sa.select(leases.c.owner, leases.c.expires).where(leases.c.name == name)).one_or_none()
    if row is None:
        conn.execute(leases.insert().values(name=name, owner=owner, expires=at + seconds))
        return True
    if row.owner != owner and row.expires > at:
        return False
    conn.execute(leases.update().where(leases.c.name == name).values(owner=owner, expires=at + seconds))
    return True


def renew(conn: Connection, name: str, owner: str, seconds: float) -> bool:
    """Extend a lease to `seconds` from now; False if it has expired or another owner holds it."""
    at = _clock(conn)
    mine = sa.and_(leases.c.name == name, leases.c.owner == owner, leases.c.expires > at)
    return conn.execute(leases.update().where(mine).values(expires=at + seconds)).rowcount == 1


def release(conn: Connection, name: str, owner: str) -> bool:
    """Give a lease back; False when it was not the owner's any more."""
    mine = sa.and_(leases.c.name == name, leases.c.owner == owner)
    return conn.execute(leases.delete().where(mine)).rowcount == 1


def holder(conn: Connection, name: str) -> tuple[str, float] | None:
    """The holder of a lease and the remaining seconds; None if there is none."""
    row = conn.execute(sa.select(leases.c.owner, leases.c.expires).where(leases.c.name == name)).one_or_none()
    seconds_left = 0.0 if row is None else row.expires - _clock(conn)
    return None if row is None or seconds_left <= 0 else (row.owner, seconds_left)


def run_out(conn: Connection, name: str) -> str | None:
    """The last holder of a lease that expired without being released; None if there is none."""
    row = conn.execute(sa.select(leases.c.owner, leases.c.expires).where(leases.c.name == name)).one_or_none()
    return row.owner if row is not None and row.expires <= _clock(conn) else None


def _clock(conn: Connection) -> float:
    if conn.dialect.name == "postgresql":
        return float(conn.execute(sa.text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())
    return time.time()
