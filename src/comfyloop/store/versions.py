"""Versions, and the live one.

A project has exactly one live version or, as version 0, the base model. `promote` and `rollback` are the only
ways to change that; each is one transaction, so that no moment shows two live versions or none.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection

from comfyloop.errors import Conflict, NotFound
from comfyloop.records import (
    BASE,
    CanaryReport,
    CanaryVerdict,
    GateReport,
    Origin,
    Project,
    Version,
    VersionState,
    now,
)
from comfyloop.store import feedback, projects
from comfyloop.store.pages import within
from comfyloop.store.schema import projects as projects_table
from comfyloop.store.schema import promotions, versions


class LiveMove(NamedTuple):
    """One move of the live version of a project."""

    number: int
    previous: int
    rollback: bool


def next_number(conn: Connection, project: str) -> int:
    """The number for a new version, held for this transaction: add the version in the same one."""
    _lock(conn, project)
    last = conn.scalar(sa.select(sa.func.max(versions.c.number)).where(versions.c.project == project))
    return (last or BASE) + 1


def add(conn: Connection, version: Version) -> None:
    """Raises:
    NotFound: Its project or parent does not exist.
    Conflict: Its number is taken, or it claims to be live.
    """
    _lock(conn, version.project)
    if version.state == VersionState.LIVE:
        raise Conflict("A version cannot be added as live.", "Add it as a candidate, then promote it.")
    if version.parent != BASE:
        get(conn, version.project, version.parent)
    if find(conn, version.project, version.number) is not None:
        raise Conflict(f"The project {version.project!r} has a version {version.number} already.")
    row = version.model_dump(exclude={"gate", "canary", "origin"})
    for name, report in (("gate", version.gate), ("canary", version.canary), ("origin", version.origin)):
        row[name] = None if report is None else report.model_dump_json()
    conn.execute(versions.insert().values(row))


def find(conn: Connection, project: str, number: int) -> Version | None:
    query = sa.select(versions).where(versions.c.project == project, versions.c.number == number)
    row = conn.execute(query).one_or_none()
    return None if row is None else _version(row)


def get(conn: Connection, project: str, number: int) -> Version:
    """Raises:
    NotFound: With the numbers that exist.
    """
    version = find(conn, project, number)
    if version is None:
        numbers = sa.select(versions.c.number).where(versions.c.project == project)
        newest = list(conn.scalars(numbers.order_by(versions.c.number.desc()).limit(20)))
        trained = f"{', '.join(map(str, reversed(newest)))} and " if newest else "only "
        there = f"It has {trained}0, the base model."
        raise NotFound(f"The project {project!r} has no version {number}.", there)
    return version


def list_by(
    conn: Connection,
    project: str,
    *,
    state: VersionState | None = None,
    before: int | None = None,
    limit: int = 100,
    max_bytes: int | None = None,
) -> list[Version]:
    """The newest first; the last number is the next page's `before`. With `max_bytes` a page ends with the one whose
    gate report passes it."""
    query = sa.select(versions).where(versions.c.project == project)
    if state is not None:
        query = query.where(versions.c.state == state)
    if before is not None:
        query = query.where(versions.c.number < before)
    query = query.order_by(versions.c.number.desc()).limit(limit)
    return [_version(row) for row in within(conn, query, "gate", max_bytes)]


def by_run(conn: Connection, project: str, ids: Sequence[str]) -> dict[str, int]:
    """The numbers of the versions that came of some runs, by the run's id."""
    query = sa.select(versions.c.run, versions.c.number).where(versions.c.project == project)
    return {run: number for run, number in conn.execute(query.where(versions.c.run.in_(ids)))}


class Named(NamedTuple):
    number: int
    state: VersionState
    created_at: datetime


def names(conn: Connection, project: str) -> list[Named]:
    """All versions of a project, newest first, without their gate reports."""
    query = sa.select(versions.c.number, versions.c.state, versions.c.created_at)
    rows = conn.execute(query.where(versions.c.project == project).order_by(versions.c.number.desc()))
    return [Named(number, VersionState(state), created_at) for number, state, created_at in rows]


def set_state(conn: Connection, project: str, number: int, state: VersionState) -> Version:
    """Reject a candidate, or make a rejected one a candidate again.

    Raises:
        NotFound: There is no such version.
        Conflict: The version is live or shall become it, or it was live and is retired.
    """
    _lock(conn, project)
    version = get(conn, project, number)
    if version.state == state:
        return version
    if VersionState.LIVE in (version.state, state):
        raise Conflict(
            f"The version {number} of {project!r} is {version.state} and cannot be set to {state}.",
            "Promote and rollback alone change which version is live.",
        )
    if {VersionState.RETIRED, VersionState.WITHDRAWN} & {version.state, state}:
        raise Conflict(f"The version {number} of {project!r} is {version.state}; it cannot become {state}.")
    _set(conn, project, number, state=state)
    return get(conn, project, number)


def withdraw(conn: Connection, project: str, number: int) -> None:
    """Withdraw a version that learned from deleted feedback: it no longer answers and cannot be promoted again.

    Raises:
        NotFound: There is no such version.
        Conflict: It is live.
    """
    _lock(conn, project)
    if get(conn, project, number).state == VersionState.LIVE:
        raise Conflict(f"The version {number} of {project!r} is live.", "Roll back first.")
    _set(conn, project, number, state=VersionState.WITHDRAWN)


def set_gate(conn: Connection, project: str, number: int, report: GateReport) -> Version:
    """Store the gate's report with its version, replacing an earlier one."""
    get(conn, project, number)
    _set(conn, project, number, gate=report.model_dump_json())
    return get(conn, project, number)


def strip_gates(
    conn: Connection, project: str, samples: Collection[str], ids: Collection[str] = ()
) -> tuple[set[int], set[str]]:
    """Take out of the gate's reports what they show of these samples, phrases that these pieces of feedback planted,
    and what withdrawn versions answered. What was decided stays, and which items were looked at.

    Returns:
        The versions whose reports were changed, and contact sheets that no report shows any more.
    """
    query = sa.select(versions.c.number, versions.c.state, versions.c.gate).where(
        versions.c.project == project
    )
    rows = conn.execute(query).all()
    withdrawn = {number for number, state, _ in rows if state == VersionState.WITHDRAWN}
    changed: set[int] = set()
    sheets: set[str] = set()
    for number, _, text in rows:
        if text is None:
            continue
        report = GateReport.model_validate_json(text)
        stripped = _stripped(report, samples, ids, withdrawn)
        if stripped != report:
            changed.add(number)
            sheets |= {report.sheet} - {stripped.sheet, None}  # type: ignore[arg-type]
            _set(conn, project, number, gate=stripped.model_dump_json())
    return changed, sheets


def _stripped(
    report: GateReport, samples: Collection[str], ids: Collection[str], withdrawn: Collection[int]
) -> GateReport:
    silent = {
        side: ""
        for side, number in (("live_answer", report.live), ("candidate_answer", report.candidate))
        if number in withdrawn
    }
    items = tuple(item.model_copy(update=silent) for item in report.items if item.sample not in samples)
    triggers = tuple(trigger for trigger in report.triggers if set(ids).isdisjoint(trigger.feedback))
    update: dict[str, Any] = {"items": items, "triggers": triggers}
    if silent or len(items) < len(report.items):
        update["sheet"] = None  # it shows the pictures that were held out and what was drawn
        # parts that were found are named by words of the questions
        update["measures"] = tuple(part for part in report.measures if not part.slice.startswith("about "))
    if triggers != report.triggers:
        update["reasons"] = ("It seemed planted. What it was has been taken back.",)
    return report.model_copy(update=update)


def reports_against(conn: Connection, project: str, live: int, limit: int = 200) -> list[GateReport]:
    """The gate's reports on versions that were judged against `live`, of the newest version first."""
    query = sa.select(versions.c.gate).where(
        # what does not say so is not read at all; what does is looked at below
        versions.c.project == project,
        versions.c.gate.contains(f'"live":{live},', autoescape=True),
    )
    bodies = conn.scalars(query.order_by(versions.c.number.desc()).limit(limit))
    reports = map(GateReport.model_validate_json, bodies)
    return [report for report in reports if report.live == live]


def promote(conn: Connection, project: str, number: int, *, force: bool = False) -> Project:
    """Make a version live, retiring the one that was. 0 is the base model. Already live: nothing changes.

    Args:
        force: Promote also what the gate rejected, or has not judged of what was imported.

    Raises:
        NotFound: There is no such project or version.
        Conflict: The version was rejected, was imported and not judged here, or has no adapter.
    """
    _lock(conn, project)
    if number != BASE:
        version = get(conn, project, number)
        if version.state == VersionState.WITHDRAWN:
            raise Conflict(
                f"The version {number} of {project!r} learned from feedback that was taken back.",
                "Start a turn: it learns the rest without it.",
            )
        if version.state == VersionState.REJECTED and not force:
            raise Conflict(
                f"The version {number} of {project!r} was rejected by the gate.",
                "Read its gate report; promote it by force if you know better.",
            )
        if not force:
            _refuse_unjudged(version)
        if version.text_adapter is None and version.image_adapter is None:
            raise Conflict(f"The version {number} of {project!r} has no adapter.", "Train it again.")
    return _move(conn, project, number, rollback=False)


def set_canary(conn: Connection, project: str, number: int, share: float) -> Project:
    """Have a version answer a share of the conversations in place of the live one; 0 ends that.

    Raises:
        NotFound: There is no such project or version.
        Conflict: The version is live already, was rejected, or has no adapter.
    """
    _lock(conn, project)
    version = get(conn, project, number)
    if share and version.state in (VersionState.LIVE, VersionState.REJECTED, VersionState.WITHDRAWN):
        raise Conflict(
            f"The version {number} of {project!r} is {version.state}, so that it cannot be a canary.",
            "Choose a candidate or one that was live before.",
        )
    if share:
        _refuse_unjudged(version)
    if version.text_adapter is None:
        raise Conflict(f"The version {number} of {project!r} has no text adapter.", "Promote it as a whole.")
    before = projects.get(conn, project)
    if before.canary != number or not share:
        _end_canary(conn, before)
    if share:
        _begin_canary(conn, before, version, share)
    values = {"canary": number if share else BASE, "canary_share": share}
    conn.execute(projects_table.update().where(projects_table.c.name == project).values(values))
    return projects.get(conn, project)


def _refuse_unjudged(version: Version) -> None:
    """Refuse an imported version that was not judged here: elsewhere it was judged on other people's
    corrections."""
    if version.origin is not None and version.gate is None:
        raise Conflict(
            f"The version {version.number} of {version.project!r} came from elsewhere and was not judged here.",
            f"Judge it first: comfyloop gate {version.number}.",
        )


def set_canary_report(conn: Connection, report: CanaryReport) -> None:
    """Store the canary report with its version.

    Raises:
        NotFound: There is no such project or version.
    """
    get(conn, report.project, report.version)
    _set(conn, report.project, report.version, canary=report.model_dump_json())


def _begin_canary(conn: Connection, project: Project, version: Version, share: float) -> None:
    """Start a canary report now. If only the share changes, the report continues: assignment is still random."""
    going_on = project.canary_share > 0 and project.canary == version.number and version.canary is not None
    report = (
        version.canary.model_copy(update={"share": share})
        if going_on and version.canary is not None
        else CanaryReport(
            project=project.name,
            version=version.number,
            live=project.live,
            share=share,
            after_seq=feedback.last_seq(conn, project.name),
        )
    )
    set_canary_report(conn, report)


def _end_canary(conn: Connection, project: Project) -> None:
    version = find(conn, project.name, project.canary) if project.canary_share else None
    if version is None or version.canary is None or version.canary.verdict is not CanaryVerdict.RUNNING:
        return
    ended = {
        "verdict": CanaryVerdict.ENDED,
        "reason": "It ended before anything was proven.",
        "updated_at": now(),
    }
    set_canary_report(conn, version.canary.model_copy(update=ended))


def rollback(conn: Connection, project: str, to: int | None = None) -> Project:
    """Go back to the version that was live before the present one, or to `to`. Rolling back twice goes back
    two steps; after the first version comes the base model.

    Raises:
        NotFound: There is no such project or version.
        Conflict: Nothing was promoted, or `to` was never live.
    """
    _lock(conn, project)
    live = projects.get(conn, project).live
    if to is None:
        to = rollback_target(conn, project)
    elif to not in (BASE, live):
        version = get(conn, project, to)
        if version.state == VersionState.WITHDRAWN:
            raise Conflict(
                f"The version {to} of {project!r} learned from feedback that was taken back.",
                "Go back to another one.",
            )
        if version.promoted_at is None:
            raise Conflict(
                f"The version {to} of {project!r} was never live, so that there is no way back to it.",
                "Promote it instead.",
            )
    return _move(conn, project, to, rollback=True)


def rollback_target(conn: Connection, project: str) -> int:
    """The version that `rollback` goes to when it is told none.

    Raises:
        NotFound: There is no such project.
        Conflict: Nothing was promoted.
    """
    projects.get(conn, project)
    query = sa.select(versions.c.number).where(
        versions.c.project == project, versions.c.state == VersionState.WITHDRAWN
    )
    withdrawn = set(conn.scalars(query))
    trail = [number for number in _trail(conn, project) if number not in withdrawn]
    if len(trail) < 2:
        raise Conflict(
            f"The project {project!r} answers with the base model and was promoted to nothing before.",
            "There is nothing to go back to.",
        )
    return trail[-2]


def history(conn: Connection, project: str, limit: int = 100) -> list[LiveMove]:
    """The moves of the live version, newest first."""
    query = sa.select(promotions.c.number, promotions.c.previous, promotions.c.rollback)
    query = query.where(promotions.c.project == project).order_by(promotions.c.seq.desc()).limit(limit)
    return [LiveMove(*row) for row in conn.execute(query)]


def trail(conn: Connection, project: str) -> list[int]:
    """The versions that successive rollbacks would return to, oldest first, the current one last."""
    return _trail(conn, project)


def _trail(conn: Connection, project: str) -> list[int]:
    """The stack of versions for rollbacks, oldest first, the current one last: promotions push, rollbacks pop."""
    query = sa.select(promotions.c.number, promotions.c.rollback)
    trail = [BASE]
    for number, back in conn.execute(query.where(promotions.c.project == project).order_by(promotions.c.seq)):
        if back and number in trail:
            while trail[-1] != number:
                trail.pop()
        else:
            trail.append(number)
    return trail


def _move(conn: Connection, project: str, number: int, *, rollback: bool) -> Project:
    before = projects.get(conn, project)
    _end_canary(conn, before)
    moved = {"live": number, "canary": BASE, "canary_share": 0.0}  # whatever was tried beside it is over
    if before.live == number:
        conn.execute(projects_table.update().where(projects_table.c.name == project).values(moved))
        return projects.get(conn, project)
    if before.live != BASE:  # first, since the database itself allows one live version at most
        _set(conn, project, before.live, state=VersionState.RETIRED)
    if number != BASE:
        _set(conn, project, number, state=VersionState.LIVE, promoted_at=now())
    conn.execute(projects_table.update().where(projects_table.c.name == project).values(moved))
    conn.execute(
        promotions.insert().values(
            project=project, number=number, previous=before.live, rollback=rollback, at=now()
        )
    )
    return projects.get(conn, project)


def _lock(conn: Connection, project: str) -> None:
    """Hold the project's row until the transaction ends."""
    query = sa.select(projects_table.c.name).where(projects_table.c.name == project)
    if conn.scalar(query.with_for_update()) is None:
        projects.get(conn, project)  # raises, with the names that exist


def _set(conn: Connection, project: str, number: int, **values: object) -> None:
    conn.execute(
        versions.update().where(versions.c.project == project, versions.c.number == number).values(values)
    )


def _version(row: sa.Row[*tuple[Any, ...]]) -> Version:
    fields = dict(row._mapping)
    for name, kind in (("gate", GateReport), ("canary", CanaryReport), ("origin", Origin)):
        fields[name] = None if fields[name] is None else kind.model_validate_json(fields[name])
    return Version.model_validate(fields)
