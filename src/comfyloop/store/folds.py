"""Which groups of samples are held out. Written once a group and never moved."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal, cast

import sqlalchemy as sa
from sqlalchemy import Connection

from comfyloop.store.locks import one_at_a_time
from comfyloop.store.schema import folds

Fold = Literal["train", "holdout"]
_MANY = 500  # groups in one statement


def assign(conn: Connection, project: str, groups: Sequence[str], every: int) -> dict[str, Fold]:
    """The fold of each group. A new group gets the project's next number i and is held out when
    ``i % every == every - 1``; a group seen before keeps its fold, whatever `every` is now.

    Args:
        groups: In the order in which they came up; repeats are allowed.
        every: One group in so many is held out, >= 2.
    """
    if every < 2:
        raise ValueError(f"every must be at least 2 to leave something to train on, not {every}")
    one_at_a_time(conn, "folds")
    hashes = {group: hashlib.sha256(group.encode("utf-8", "surrogatepass")).hexdigest() for group in groups}
    known = _known(conn, project, list(hashes.values()))
    last = conn.scalar(sa.select(sa.func.max(folds.c.number)).where(folds.c.project == project))
    number = 0 if last is None else last + 1
    rows: list[dict[str, str | int]] = []
    for digest in hashes.values():
        if digest in known:
            continue
        known[digest] = "holdout" if number % every == every - 1 else "train"
        rows.append({"project": project, "group_sha256": digest, "number": number, "fold": known[digest]})
        number += 1
    if rows:
        conn.execute(folds.insert(), rows)
    return {group: known[digest] for group, digest in hashes.items()}


def counts(conn: Connection, project: str) -> dict[str, int]:
    """How many groups each fold has."""
    query = sa.select(folds.c.fold, sa.func.count()).where(folds.c.project == project)
    rows = conn.execute(query.group_by(folds.c.fold))
    return {"train": 0, "holdout": 0} | {fold: number for fold, number in rows}


def _known(conn: Connection, project: str, hashes: Sequence[str]) -> dict[str, Fold]:
    known: dict[str, Fold] = {}
    for start in range(0, len(hashes), _MANY):
        some = hashes[start : start + _MANY]
        query = sa.select(folds.c.group_sha256, folds.c.fold)
        for digest, fold in conn.execute(
            query.where(folds.c.project == project, folds.c.group_sha256.in_(some))
        ):
            known[digest] = cast(Fold, fold)
    return known
