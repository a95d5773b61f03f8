"""Generations: every model call, appended and never changed."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import sqlalchemy as sa
from sqlalchemy import Connection

from comfyloop.errors import Conflict, NotFound
from comfyloop.records import Generation
from comfyloop.store import projects
from comfyloop.store.pages import within
from comfyloop.store.schema import feedback, generations

_MANY = 500  # ids in one statement


def add(conn: Connection, generation: Generation) -> None:
    """Adding the same generation twice stores it once.

    Raises:
        NotFound: Its project does not exist.
        Conflict: Its id belongs to another generation.
    """
    projects.get(conn, generation.project)
    body = generation.model_dump_json()
    stored = conn.scalar(sa.select(generations.c.body).where(generations.c.id == generation.id))
    if stored is not None:
        if Generation.model_validate_json(stored) != Generation.model_validate_json(body):
            raise Conflict(f"The generation {generation.id!r} exists already with other content.")
        return
    conn.execute(
        generations.insert().values(
            id=generation.id, project=generation.project, version=generation.version, body=body
        )
    )


def get(conn: Connection, id: str) -> Generation:
    """Raises:
    NotFound: There is no such generation.
    """
    generations_by_id = get_many(conn, [id])
    if id not in generations_by_id:
        raise NotFound(
            f"There is no generation {id!r}.",
            "Its id is the `id` of a chat answer; GET /v1/generations lists them.",
        )
    return generations_by_id[id]


def get_many(conn: Connection, ids: Sequence[str]) -> dict[str, Generation]:
    """Those of `ids` that exist, by id."""
    generations_by_id: dict[str, Generation] = {}
    for start in range(0, len(ids), _MANY):
        some = ids[start : start + _MANY]
        for body in conn.scalars(sa.select(generations.c.body).where(generations.c.id.in_(some))):
            generation = Generation.model_validate_json(body)
            generations_by_id[generation.id] = generation
    return generations_by_id


def delete_alone(conn: Connection, ids: Collection[str]) -> list[Generation]:
    """Delete those of `ids` that no feedback is about; what was deleted."""
    alone = set(ids)
    for start in range(0, len(ids), _MANY):
        some = sorted(ids)[start : start + _MANY]
        alone -= set(conn.scalars(sa.select(feedback.c.generation).where(feedback.c.generation.in_(some))))
    unmentioned = get_many(conn, sorted(alone))
    for start in range(0, len(unmentioned), _MANY):
        some = sorted(unmentioned)[start : start + _MANY]
        conn.execute(generations.delete().where(generations.c.id.in_(some)))
    return list(unmentioned.values())


def list_by(
    conn: Connection,
    project: str,
    *,
    before_seq: int | None = None,
    version: int | None = None,
    limit: int = 50,
    max_bytes: int | None = None,
) -> list[tuple[int, Generation]]:
    """The newest first, each with its sequence number; the last number is the next page's `before_seq`. With
    `max_bytes` a page ends with the one that passes it."""
    table = generations
    query = sa.select(table.c.seq, table.c.body).where(table.c.project == project)
    if before_seq is not None:
        query = query.where(table.c.seq < before_seq)
    if version is not None:
        query = query.where(table.c.version == version)
    rows = within(conn, query.order_by(table.c.seq.desc()).limit(limit), "body", max_bytes)
    return [(seq, Generation.model_validate_json(body)) for seq, body in rows]
