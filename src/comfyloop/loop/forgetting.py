"""Taking feedback back: it is deleted, and no version that learned from it answers any more."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from comfyloop import formats
from comfyloop.errors import NotFound
from comfyloop.loop import erasing
from comfyloop.loop.stages import Stages
from comfyloop.records import BASE, Forgotten, Loop, LoopState, VersionState
from comfyloop.store import (
    Store,
    feedback,
    generations,
    lessons,
    loops,
    mentions,
    projects,
    snapshots,
    versions,
)
from comfyloop.train import runners


def forget(
    stages: Stages, project: str, ids: Collection[str], *, questions: bool = False, remember: bool = True
) -> Forgotten:
    """Delete pieces of feedback of a project and all that was made of them (erasing.py), and take back the versions
    that carry any of them.

    If the live version carries them, it is replaced by the newest earlier live version that does not, or by the
    base model. A run that is learning them is cancelled. The operation is idempotent.

    Args:
        questions: What was asked and answered goes, too, unless others have said something about it.
        remember: The same feedback does not come back when it is sent again.

    Raises:
        NotFound: There is no such project.
        EngineUnavailable: The version to go back to cannot be loaded; nothing is undone, call it again.
        StorageError: The disk or the database refuses; call it again.
    """
    store = stages.store
    with store.read() as conn:
        previous = projects.get(conn, project).live
    while (outcome := _delete(stages, project, ids, questions, remember)) is None:
        _answer_with_another(stages, project, ids)
    deleted, carriers, loop = outcome
    for number in carriers:
        stages.router.retire(project, number)
    learning = loop.state is LoopState.TRAINING and not set(ids).isdisjoint(
        _of_snapshot(stages, project, loop.snapshot)
    )
    judging = loop.state in (LoopState.GATING, LoopState.PROMOTING) and loop.version in carriers
    if learning:
        runners.cancel(stages.run_dir(loop.run))
    stages.known(project).forget()
    erasing.reports(stages, project, (), ids)
    erasing.erase(stages, project)
    with store.read() as conn:
        live = projects.get(conn, project).live
    return Forgotten(
        project=project,
        feedback=tuple(sorted(deleted)),
        versions=tuple(carriers),
        previous=previous,
        live=live,
        retrains=learning or judging or live != previous,
    )


def _delete(
    stages: Stages, project: str, ids: Collection[str], questions: bool, remember: bool
) -> tuple[list[str], list[int], Loop] | None:
    """Delete the feedback and pictures that only it refers to, and withdraw the versions that learned from it; None
    while one of those is live."""
    with stages.store.begin() as conn:
        record = projects.get(conn, project)
        carriers = lessons.carriers(conn, project, ids)
        if record.live in carriers or (record.canary_share and record.canary in carriers):
            return None
        items = [item for item in feedback.find_many(conn, sorted(ids)).values() if item.project == project]
        deleted = feedback.delete_some(conn, project, ids, remember=remember)
        texts = [item.model_dump_json() for item in items]
        if questions:
            about = {id for item in items if (id := getattr(item, "generation", None))}
            texts += [one.model_dump_json() for one in generations.delete_alone(conn, sorted(about))]
        erasing.pictures(stages, mentions.unmentioned(conn, mentions.pictures(texts)))
        for number in carriers:
            versions.withdraw(conn, project, number)
        return deleted, carriers, loops.get(conn, project)


def _answer_with_another(stages: Stages, project: str, ids: Collection[str]) -> None:
    """Ensure that no version that carries them is live or a canary."""
    with stages.store.read() as conn:
        record = projects.get(conn, project)
        carriers = lessons.carriers(conn, project, ids)
    if record.canary_share and record.canary in carriers:
        stages.router.canary(project, record.canary, 0)
    if record.live in carriers:
        stages.router.rollback(project, _newest_without(stages.store, project, carriers))


def of_sample(store: Store, project: str, sample: str) -> list[str]:
    """The feedback that a sample was made from, according to the newest snapshots.

    Raises:
        NotFound: No snapshot that is still there has such a sample.
    """
    with store.read() as conn:
        candidates = snapshots.list_by(conn, project, limit=50)
    for snapshot in candidates:
        for file in sorted(Path(snapshot.path).glob("*.jsonl")):
            if sample.encode("utf-8", "surrogatepass") not in file.read_bytes():
                continue  # as nearly all: they need not be parsed
            for row in formats.objects(file):
                if row.get("id") == sample:
                    return list(row["feedback"])
    raise NotFound(
        f"No snapshot of {project!r} has a sample {sample!r}.",
        "comfyloop runs RUN_ID names the samples of a run; feedback is taken back by --feedback too.",
    )


def _of_snapshot(stages: Stages, project: str, id: str) -> set[str]:
    with stages.store.read() as conn:
        snapshot = snapshots.find(conn, project, id)
    return set(snapshot.feedback) if snapshot is not None else set()


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
