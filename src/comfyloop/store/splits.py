"""The split of groups of samples. Assigned once per group; a held-out group can be released for training, but never
the reverse.

Groups are numbered within their stratum (corrections, accepted answers, ratings, pictures), so that each stratum
has its share held out, independently of the others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from typing import Literal, cast

import sqlalchemy as sa
from sqlalchemy import Connection

from comfyloop.store.locks import one_at_a_time
from comfyloop.store.schema import splits

SplitSide = Literal["train", "holdout"]
_MANY = 500  # groups in one statement


def assign(
    conn: Connection,
    project: str,
    groups: Mapping[str, str],
    every: int,
    first: int = 0,
    judged: Mapping[str, str] | None = None,
) -> dict[str, SplitSide]:
    """The side of each group. A new group gets the next number of its stratum, and `is_held_out` decides by its place
    among those that came after the judged ones; a group seen before keeps its side, whatever the settings are now.

    Args:
        groups: Group -> its stratum, in the order in which they came up.
        every, first: As of `is_held_out`.
        judged: Groups with their strata; places are counted from the last of them on, since the next version is to
            be judged by others, too.
    """
    if every < 2:
        raise ValueError(f"every must be at least 2 to leave something to train on, not {every}")
    one_at_a_time(conn, "folds")
    hashes = {group: _hash(group) for group in groups}
    past = {group: _hash(group) for group in judged or {}}
    sides, numbers = _known(conn, project, list({*hashes.values(), *past.values()}))
    query = sa.select(splits.c.stratum, sa.func.max(splits.c.number)).where(splits.c.project == project)
    last = {stratum: number for stratum, number in conn.execute(query.group_by(splits.c.stratum))}
    begin: dict[str, int] = {}
    for group, stratum in (judged or {}).items():
        begin[stratum] = max(begin.get(stratum, 0), numbers.get(past[group], -1) + 1)
    rows: list[dict[str, str | int]] = []
    for group, digest in hashes.items():
        if digest in sides:
            continue
        stratum = groups[group]
        number = last[stratum] = last.get(stratum, -1) + 1
        place = number - begin.get(stratum, 0)
        sides[digest] = "holdout" if is_held_out(place, every, first) else "train"
        rows.append(
            {
                "project": project,
                "group_sha256": digest,
                "stratum": stratum,
                "number": number,
                "fold": sides[digest],
            }
        )
    if rows:
        conn.execute(splits.insert(), rows)
    return {group: sides[digest] for group, digest in hashes.items()}


def release(conn: Connection, project: str, groups: Collection[str]) -> None:
    """Release held-out groups for training. This is irreversible: a version may have learned them."""
    hashes = [_hash(group) for group in groups]
    for start in range(0, len(hashes), _MANY):
        some = splits.c.group_sha256.in_(hashes[start : start + _MANY])
        conn.execute(splits.update().where(splits.c.project == project, some).values(fold="train"))


def _hash(group: str) -> str:
    return hashlib.sha256(group.encode("utf-8", "surrogatepass")).hexdigest()


def is_held_out(number: int, every: int, first: int) -> bool:
    """Whether the group in that place (from 0) is held out: every second one until `first` are, so that there is soon
    enough to judge by, then one of `every`."""
    if number < 2 * first:
        return number % 2 == 1
    return number % every == every - 1


def _known(conn: Connection, project: str, hashes: list[str]) -> tuple[dict[str, SplitSide], dict[str, int]]:
    """The sides and the numbers of groups that were seen before."""
    query = sa.select(splits.c.group_sha256, splits.c.fold, splits.c.number).where(
        splits.c.project == project
    )
    if len(hashes) > 4 * _MANY:  # nearly all of the project's: quicker than to ask for each
        rows = list(conn.execute(query))
    else:
        rows = [
            row
            for start in range(0, len(hashes), _MANY)
            for row in conn.execute(query.where(splits.c.group_sha256.in_(hashes[start : start + _MANY])))
        ]
    return (
        {digest: cast(SplitSide, side) for digest, side, _ in rows},
        {digest: number for digest, _, number in rows},
    )
