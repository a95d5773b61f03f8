"""The feedback that each version learned from: its own and that of its ancestors."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import sqlalchemy as sa
from sqlalchemy import Connection

from comfyloop.records import BASE
from comfyloop.store.schema import lessons, versions

_MANY = 500  # ids in one statement


def add(conn: Connection, project: str, number: int, feedback: Iterable[str]) -> None:
    """Record what a version itself was trained on, once, when it is added."""
    rows = [{"project": project, "number": number, "feedback": id} for id in sorted(set(feedback))]
    if rows:
        conn.execute(lessons.insert(), rows)


def lineage(conn: Connection, project: str, number: int) -> list[int]:
    """A version and its ancestors, newest first; the base model has none."""
    return _walk(_parents(conn, project), number)


def _parents(conn: Connection, project: str) -> dict[int, int]:
    """The parent of each version of a project."""
    query = sa.select(versions.c.number, versions.c.parent, versions.c.fresh)
    rows = conn.execute(query.where(versions.c.project == project))
    return {number: BASE if fresh else parent for number, parent, fresh in rows}


def _walk(parents: Mapping[int, int], number: int) -> list[int]:
    line: list[int] = []
    while number in parents and number not in line:
        line.append(number)
        number = parents[number]
    return line


def learned(conn: Connection, project: str, number: int) -> set[str]:
    """Ids of the feedback that a version and its ancestors learned from."""
    numbers = lineage(conn, project, number)
    query = sa.select(lessons.c.feedback).where(lessons.c.project == project, lessons.c.number.in_(numbers))
    return set(conn.scalars(query)) if numbers else set()


def carriers(conn: Connection, project: str, feedback: Collection[str]) -> list[int]:
    """The versions that carry any of some pieces of feedback, oldest first."""
    ids = sorted(feedback)
    direct: set[int] = set()
    for start in range(0, len(ids), _MANY):
        query = sa.select(lessons.c.number).where(
            lessons.c.project == project, lessons.c.feedback.in_(ids[start : start + _MANY])
        )
        direct.update(conn.scalars(query))
    parents = _parents(conn, project)
    return sorted(number for number in parents if direct.intersection(_walk(parents, number)))
