"""Taking back what a person did: the feedback goes, and no version that learned from it answers any longer."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from comfyloop import curate
from comfyloop.errors import NotFound
from comfyloop.loop.work import Work
from comfyloop.records import BASE, Forgotten, LoopState, VersionState
from comfyloop.store import Store, feedback, flags, lessons, loops, projects, snapshots, versions
from comfyloop.train import runners


def forget(work: Work, project: str, ids: Collection[str]) -> Forgotten:
    """Delete pieces of feedback of a project, what snapshots and reports hold of them, and take back the versions that
    carry any of them.

    Where the live version does, the newest version that was live before and carries none takes its place, or the
    base model. A run that is learning them is cancelled. Done twice, it gives the same.

    Raises:
        NotFound: There is no such project.
        EngineUnavailable: The version to go back to cannot be loaded; nothing else is undone, call it again.
    """
    with work.store.begin() as conn:
        live = projects.get(conn, project).live
        deleted = feedback.delete_some(conn, project, ids)
        carriers = lessons.carriers(conn, project, ids)
        canary = projects.get(conn, project).canary
        back_to = _newest_without(work.store, project, carriers) if live in carriers else live
        loop = loops.get(conn, project)
    if canary in carriers:
        work.router.canary(project, canary, 0)
    if back_to != live:
        work.router.rollback(project, back_to)
    with work.store.begin() as conn:
        for number in carriers:
            versions.withdraw(conn, project, number)
    learning = loop.state is LoopState.TRAINING and not set(ids).isdisjoint(
        _of_snapshot(work, project, loop.snapshot)
    )
    if learning:
        runners.cancel(work.run_dir(loop.run))
    _strip(work.store, project, ids)
    return Forgotten(
        project=project,
        feedback=tuple(sorted(deleted)),
        versions=tuple(carriers),
        previous=live,
        live=back_to,
        retrains=learning or back_to != live,
    )


def of_sample(store: Store, project: str, sample: str) -> list[str]:
    """The feedback that a sample was made of, as the newest snapshots tell.

    Raises:
        NotFound: No snapshot that is still there has such a sample.
    """
    with store.read() as conn:
        found = snapshots.list_by(conn, project, limit=50)
    for snapshot in found:
        for file in sorted(Path(snapshot.path).glob("*.jsonl")):
            for line in file.read_text(encoding="utf-8").split("\n"):
                if sample in line and (row := json.loads(line)).get("id") == sample:
                    return list(row["feedback"])
    raise NotFound(
        f"No snapshot of {project!r} has a sample {sample!r}.",
        "comfyloop runs RUN_ID names the samples of a run; feedback is taken back by --feedback too.",
    )


def _strip(store: Store, project: str, ids: Collection[str]) -> None:
    """The texts and pictures go from snapshots and reports, too."""
    before: str | None = None
    samples: set[str] = set()
    while True:
        with store.read() as conn:
            page = snapshots.list_by(conn, project, before=before)
        if not page:
            break
        for snapshot in page:
            if Path(snapshot.path).is_dir():
                samples |= curate.strip(Path(snapshot.path), ids)
        before = page[-1].id
    with store.begin() as conn:
        flags.strip(conn, project, ids)
        versions.strip_gates(conn, project, samples, ids)


def _of_snapshot(work: Work, project: str, id: str) -> set[str]:
    with work.store.read() as conn:
        found = snapshots.find(conn, project, id)
    return set(found.feedback) if found is not None else set()


def _newest_without(store: Store, project: str, carriers: Collection[int]) -> int:
    with store.read() as conn:
        before = [move.previous for move in versions.history(conn, project)]
        for number in before:
            if number == BASE:
                return BASE
            version = versions.find(conn, project, number)
            if number not in carriers and version is not None and version.state is VersionState.RETIRED:
                return number
    return BASE
