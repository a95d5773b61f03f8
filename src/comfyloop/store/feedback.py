"""Feedback: appended, never changed, deleted only on request.

Every piece gets a sequence number that increases in commit order and is never reused, so that "everything after
number n" neither misses nor repeats anything.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from itertools import islice
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection

from comfyloop.errors import Conflict, NotFound
from comfyloop.records import Feedback, feedback_adapter, now
from comfyloop.store.locks import one_at_a_time
from comfyloop.store.pages import within
from comfyloop.store.schema import feedback, feedback_deleted

_MANY = 500  # ids in one statement


def add(conn: Connection, items: Sequence[Feedback]) -> tuple[list[str], list[str]]:
    """Store the new ones of `items`, in their order.

    Returns:
        The ids stored now, and the ids that had been stored before (also those deleted since).

    Raises:
        Conflict: An id is known with other content. Nothing of the batch is stored.
    """
    one_at_a_time(conn, "feedback")
    ids = [item.id for item in items]
    earlier_items = find_many(conn, ids)
    deleted = _deleted(conn, ids)
    stored: list[str] = []
    duplicates: list[str] = []
    bodies: list[Body] = []
    for item in items:
        earlier = earlier_items.get(item.id)
        if earlier is not None and not same(earlier, item):
            raise Conflict(
                f"The feedback {item.id!r} exists already with other content.",
                "Feedback is never changed: send the new content under a new id.",
            )
        if earlier is not None or item.id in deleted:
            duplicates.append(item.id)
            continue
        earlier_items[item.id] = item
        stored.append(item.id)
        bodies.append(body_of(item))
    _insert(conn, bodies)
    return stored, duplicates


class Body(NamedTuple):
    """A piece of feedback as it is stored."""

    id: str
    project: str
    kind: str
    author: str
    generation: str | None
    body: str


def body_of(item: Feedback) -> Body:
    generation = getattr(item, "generation", None)
    return Body(item.id, item.project, item.kind, item.author, generation, item.model_dump_json())


def add_made_of_content(conn: Connection, bodies: Iterable[Body]) -> tuple[int, int]:
    """`add`, of many pieces whose ids are made from their content: the same id says the same, and nothing is parsed.

    Returns:
        How many were stored now, and how many had been stored before (also those deleted since).
    """
    one_at_a_time(conn, "feedback")
    stored = total = 0
    remaining = iter(bodies)
    while some := list(islice(remaining, _MANY)):
        by_id = {body.id: body for body in some}
        ids_there = existing(conn, list(by_id)) | _deleted(conn, list(by_id))
        new = [body for body in by_id.values() if body.id not in ids_there]
        _insert(conn, new)
        stored, total = stored + len(new), total + len(some)
    return stored, total - stored


def _insert(conn: Connection, bodies: Sequence[Body]) -> None:
    if bodies:
        received = now()
        conn.execute(feedback.insert(), [{**body._asdict(), "received_at": received} for body in bodies])


def same(one: Feedback, other: Feedback) -> bool:
    """Whether two items are equal except for `created_at`, which changes on every retry if a client omits it."""
    first, second = (json.loads(item.model_dump_json(exclude={"created_at"})) for item in (one, other))
    return bool(first == second)


def get(conn: Connection, id: str) -> Feedback:
    """Raises:
    NotFound: There is no such feedback.
    """
    items = find_many(conn, [id])
    if id not in items:
        raise NotFound(f"There is no feedback {id!r}.", "GET /v1/feedback lists what there is.")
    return items[id]


def find_many(conn: Connection, ids: Sequence[str]) -> dict[str, Feedback]:
    """Those of `ids` that exist, by id."""
    items: dict[str, Feedback] = {}
    for start in range(0, len(ids), _MANY):
        some = ids[start : start + _MANY]
        for body in conn.scalars(sa.select(feedback.c.body).where(feedback.c.id.in_(some))):
            item = feedback_adapter.validate_json(body)
            items[item.id] = item
    return items


def list_by(
    conn: Connection,
    project: str,
    after_seq: int = 0,
    kind: str | None = None,
    author: str | None = None,
    limit: int = 1000,
    max_bytes: int | None = None,
) -> list[tuple[int, Feedback]]:
    """The oldest first, each with its sequence number; the last number is the next page's `after_seq`. With
    `max_bytes` a page ends with the one that passes it."""
    query = _where(project, kind, author).where(feedback.c.seq > after_seq)
    return _read(conn, query.order_by(feedback.c.seq).limit(limit), max_bytes)


def newest(
    conn: Connection,
    project: str,
    *,
    before_seq: int | None = None,
    kind: str | None = None,
    author: str | None = None,
    limit: int = 50,
) -> list[tuple[int, Feedback]]:
    """The newest first, each with its sequence number; the last number is the next page's `before_seq`."""
    query = _where(project, kind, author)
    if before_seq is not None:
        query = query.where(feedback.c.seq < before_seq)
    return _read(conn, query.order_by(feedback.c.seq.desc()).limit(limit))


def of_kinds(
    conn: Connection,
    project: str,
    kinds: Sequence[str],
    *,
    after_seq: int = 0,
    before_seq: int | None = None,
    limit: int = 1000,
) -> list[tuple[int, Feedback]]:
    """`newest`, of several kinds and after `after_seq`; the bodies of other kinds are not read."""
    query = _where(project, None, None).where(feedback.c.kind.in_(kinds), feedback.c.seq > after_seq)
    if before_seq is not None:
        query = query.where(feedback.c.seq < before_seq)
    return _read(conn, query.order_by(feedback.c.seq.desc()).limit(limit))


def ids_after(conn: Connection, project: str, after_seq: int, limit: int = 1000) -> list[tuple[int, str]]:
    """Sequence numbers and ids, the oldest first."""
    query = sa.select(feedback.c.seq, feedback.c.id).where(feedback.c.project == project)
    rows = conn.execute(query.where(feedback.c.seq > after_seq).order_by(feedback.c.seq).limit(limit))
    return [(seq, id) for seq, id in rows]


def existing(conn: Connection, ids: Sequence[str]) -> set[str]:
    """Those of `ids` that are stored, and were not deleted."""
    ids_there: set[str] = set()
    for start in range(0, len(ids), _MANY):
        some = ids[start : start + _MANY]
        ids_there.update(conn.scalars(sa.select(feedback.c.id).where(feedback.c.id.in_(some))))
    return ids_there


def count_after(conn: Connection, project: str, seq: int = 0) -> int:
    """How many pieces of feedback are newer than `seq`."""
    query = sa.select(sa.func.count()).select_from(feedback)
    return conn.execute(query.where(feedback.c.project == project, feedback.c.seq > seq)).scalar_one()


def count_upto(conn: Connection, project: str, seq: int) -> int:
    """How many pieces of feedback there are up to `seq`: fewer than before, where some were deleted since."""
    query = sa.select(sa.func.count()).select_from(feedback)
    return conn.execute(query.where(feedback.c.project == project, feedback.c.seq <= seq)).scalar_one()


def counts(conn: Connection, project: str) -> dict[str, int]:
    """How many pieces there are of each kind, the most frequent first."""
    count = sa.func.count()
    query = sa.select(feedback.c.kind, count).where(feedback.c.project == project)
    return {kind: many for kind, many in conn.execute(query.group_by(feedback.c.kind).order_by(count.desc()))}


def last_seq(conn: Connection, project: str) -> int:
    """The number of the newest feedback, 0 when there is none."""
    query = sa.select(sa.func.max(feedback.c.seq)).where(feedback.c.project == project)
    return conn.execute(query).scalar_one() or 0


def oldest_after(conn: Connection, project: str, seq: int) -> datetime | None:
    """When the oldest feedback newer than `seq` was received; None when there is none."""
    query = sa.select(feedback.c.received_at).where(feedback.c.project == project, feedback.c.seq > seq)
    return conn.scalar(query.order_by(feedback.c.seq).limit(1))


def delete_author(conn: Connection, project: str | None, author: str) -> int:
    """Delete all feedback of an author, in one project or (None) in all.

    The ids alone are kept, so that a late second delivery of the same feedback does not bring it back.

    Returns:
        How many pieces were deleted.
    """
    one_at_a_time(conn, "feedback")
    theirs = feedback.c.author == author
    if project is not None:
        theirs = sa.and_(theirs, feedback.c.project == project)
    return _delete(conn, theirs)


def ids_of_author(conn: Connection, project: str, author: str) -> list[str]:
    """Ids of what an author sent to a project."""
    return list(
        conn.scalars(
            sa.select(feedback.c.id).where(feedback.c.project == project, feedback.c.author == author)
        )
    )


def delete_some(conn: Connection, project: str, ids: Collection[str], *, remember: bool = True) -> list[str]:
    """Delete pieces of a project; missing ones are ignored.

    Args:
        remember: The ids are kept, so that a late second delivery does not bring the pieces back; else they may be
            added anew.

    Returns:
        The ids of what was deleted now.
    """
    one_at_a_time(conn, "feedback")
    wanted = sorted(set(ids))
    deleted: list[str] = []
    for start in range(0, len(wanted), _MANY):
        some = sa.and_(feedback.c.project == project, feedback.c.id.in_(wanted[start : start + _MANY]))
        deleted += conn.scalars(sa.select(feedback.c.id).where(some))
        _delete(conn, some, remember)
    return deleted


def delete(conn: Connection, id: str) -> None:
    """Delete one piece. Only its id is kept, so that a late second delivery does not restore it.

    Raises:
        NotFound: There is no such feedback.
    """
    one_at_a_time(conn, "feedback")
    if not _delete(conn, feedback.c.id == id):
        raise NotFound(f"There is no feedback {id!r}.", "GET /v1/feedback lists what there is.")


def _delete(conn: Connection, which: sa.ColumnElement[bool], remember: bool = True) -> int:
    """Delete pieces, keeping only their ids, or nothing; returns their number."""
    if remember:
        ids = sa.select(feedback.c.id).where(which)
        conn.execute(feedback_deleted.insert().from_select(["id"], ids))
    return conn.execute(feedback.delete().where(which)).rowcount


def _deleted(conn: Connection, ids: Sequence[str]) -> set[str]:
    deleted_ids: set[str] = set()
    for start in range(0, len(ids), _MANY):
        some = ids[start : start + _MANY]
        deleted_ids.update(
            conn.scalars(sa.select(feedback_deleted.c.id).where(feedback_deleted.c.id.in_(some)))
        )
    return deleted_ids


def _where(project: str, kind: str | None, author: str | None) -> sa.Select[int, str]:
    query = sa.select(feedback.c.seq, feedback.c.body).where(feedback.c.project == project)
    if kind is not None:
        query = query.where(feedback.c.kind == kind)
    if author is not None:
        query = query.where(feedback.c.author == author)
    return query


def _read(
    conn: Connection, query: sa.Select[int, str], max_bytes: int | None = None
) -> list[tuple[int, Feedback]]:
    return [
        (seq, feedback_adapter.validate_json(body)) for seq, body in within(conn, query, "body", max_bytes)
    ]
