"""Finds pictures that feedback or generations still refer to."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

import sqlalchemy as sa
from sqlalchemy import Connection

from comfyloop.store.pages import within
from comfyloop.store.schema import feedback, generations

_SHA = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")


def pictures(bodies: Iterable[str]) -> set[str]:
    """The hashes in JSON of feedback and generations."""
    return {sha for body in bodies for sha in _SHA.findall(body)}


def unmentioned(conn: Connection, wanted: Collection[str]) -> set[str]:
    """Those of some pictures that no feedback and no generation of any project refers to. Reads all of them."""
    remaining = set(wanted)
    for table in (feedback, generations):
        if remaining:
            for row in within(conn, sa.select(table.c.body), "body"):
                remaining.difference_update(_SHA.findall(row.body))
    return remaining
