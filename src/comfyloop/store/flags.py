"""Questions to people about feedback, and their answers.

Questions that follow from the feedback itself are computed each time and not stored; answers are stored. What the
gate found on a trained version is stored, since it cannot be recomputed from feedback; so is a detected change of
mind, since later feedback must not undo it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import sqlalchemy as sa
from sqlalchemy import Connection

from comfyloop.records import Flag
from comfyloop.store import projects
from comfyloop.store.schema import flags

BOTH = "both"
"""The answer to a change of mind that both hold, what was wanted before and what is now."""


def answers(conn: Connection, project: str) -> dict[str, str]:
    """The answers, by the id of the question."""
    query = sa.select(flags.c.key, flags.c.answer).where(flags.c.project == project)
    return {key: answer for key, answer in conn.execute(query.where(flags.c.answer.is_not(None)))}


def put_answers(conn: Connection, project: str, answers_by_key: Mapping[str, str]) -> None:
    """Raises:
    NotFound: There is no such project.
    """
    projects.get(conn, project)
    for key, answer in answers_by_key.items():
        here = sa.and_(flags.c.project == project, flags.c.key == key)
        if not conn.execute(flags.update().where(here).values(answer=answer)).rowcount:
            conn.execute(flags.insert().values(project=project, key=key, answer=answer))


def found(conn: Connection, project: str) -> list[Flag]:
    """What was found once, answered or not."""
    query = sa.select(flags.c.body).where(flags.c.project == project, flags.c.body.is_not(None))
    return [Flag.model_validate_json(body) for body in conn.scalars(query.order_by(flags.c.key))]


def changes(conn: Connection, project: str) -> tuple[tuple[str, str | None], ...]:
    """Ids of the changes of mind that were found, and what was answered to each: it tells whether `outdated` is new."""
    query = sa.select(flags.c.key, flags.c.answer).where(
        flags.c.project == project, flags.c.body.is_not(None)
    )
    found_ones = conn.execute(query.where(flags.c.key.startswith("change-")).order_by(flags.c.key))
    return tuple((key, answer) for key, answer in found_ones)


def outdated(conn: Connection, project: str) -> frozenset[str]:
    """Feedback of before somebody changed his mind, where nobody has said that both hold."""
    said = answers(conn, project)
    found_ones = (
        flag for flag in found(conn, project) if flag.kind == "change" and said.get(flag.id) != BOTH
    )
    return frozenset(id for flag in found_ones for id in flag.outdated)


def strip(conn: Connection, project: str, feedback: Collection[str]) -> None:
    """Remove the content of these pieces of feedback from the gate's findings; answers stay."""
    for flag in found(conn, project):
        choices = tuple(choice for choice in flag.choices if choice.feedback not in feedback)
        outdated = tuple(id for id in flag.outdated if id not in feedback)
        if len(choices) < len(flag.choices) or len(outdated) < len(flag.outdated):
            left = {"choices": choices, "outdated": outdated}
            body = flag.model_copy(update=left).model_dump_json() if choices else None
            here = sa.and_(flags.c.project == project, flags.c.key == flag.id)
            conn.execute(flags.update().where(here).values(body=body))


def add(conn: Connection, project: str, items: Sequence[Flag]) -> None:
    """Store new findings; earlier answers to them stay valid."""
    for item in items:
        here, body = sa.and_(flags.c.project == project, flags.c.key == item.id), item.model_dump_json()
        if not conn.execute(flags.update().where(here).values(body=body)).rowcount:
            conn.execute(flags.insert().values(project=project, key=item.id, body=body))
