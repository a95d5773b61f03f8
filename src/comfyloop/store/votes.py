"""Which of two versions' answers a person preferred without knowing whose they were. What was asked and answered is not
kept with it: there is nothing in a vote that a person would want forgotten."""

from __future__ import annotations

from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection

from comfyloop.records import now
from comfyloop.store import projects
from comfyloop.store.schema import votes


class Tally(NamedTuple):
    """The votes on two versions, of which `first` has the lower number."""

    first: int
    second: int
    for_first: int
    for_second: int
    equal: int


def add(conn: Connection, project: str, id: str, pair: tuple[int, int], chosen: int | None) -> bool:
    """Whether it is new: a vote that comes a second time counts once.

    Args:
        chosen: One of the pair; None: they were as good.

    Raises:
        NotFound: There is no such project.
    """
    projects.get(conn, project)
    here = sa.and_(votes.c.project == project, votes.c.id == id)
    if conn.scalar(sa.select(votes.c.id).where(here)) is not None:
        return False
    first, second = sorted(pair)
    conn.execute(
        votes.insert().values(project=project, id=id, first=first, second=second, chosen=chosen, at=now())
    )
    return True


def delete(conn: Connection, project: str, id: str) -> bool:
    """Whether there was such a vote."""
    return bool(conn.execute(votes.delete().where(votes.c.project == project, votes.c.id == id)).rowcount)


def tallies(conn: Connection, project: str) -> list[Tally]:
    """The pairs on which there are votes, the newest versions first."""
    query = (
        sa.select(votes.c.first, votes.c.second, votes.c.chosen, sa.func.count())
        .where(votes.c.project == project)
        .group_by(votes.c.first, votes.c.second, votes.c.chosen)
    )
    counts: dict[tuple[int, int], dict[int | None, int]] = {}
    for first, second, chosen, n in conn.execute(query):
        counts.setdefault((first, second), {})[chosen] = n
    return [
        Tally(first, second, found.get(first, 0), found.get(second, 0), found.get(None, 0))
        for (first, second), found in sorted(counts.items(), reverse=True)
    ]
