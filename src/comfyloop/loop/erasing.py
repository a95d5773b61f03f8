"""Deletes everything that was derived from deleted feedback, wherever a turn has stored it.

The snapshots tell what was derived from what. After a kill in the middle, calling it again finds the rest; the data
of a turn in progress is erased by that turn when it ends.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

from comfyloop import curate, integrity
from comfyloop.durable import disappear
from comfyloop.errors import StorageError
from comfyloop.loop.stages import Stages
from comfyloop.records import LoopState, Snapshot, VersionState
from comfyloop.store import feedback, flags, loops, runs, snapshots, versions
from comfyloop.store.pages import every
from comfyloop.train.run.directory import RunDirectory


def erase(stages: Stages, project: str) -> None:
    """Raises StorageError: The disk or the database refuses. Calling it again continues."""
    for snapshot in every(stages.store, snapshots.list_by, project, lambda entry: entry.id):
        of_snapshot(stages, snapshot)
    try:
        _of_versions(stages, project)
    except OSError as error:
        raise _refused(error) from error
    stages.store.settle()


def pictures(stages: Stages, hashes: Collection[str]) -> None:
    """Delete pictures that nothing refers to any more, and cached measurements of them.

    Raises:
        StorageError: The disk refuses.
    """
    for sha in hashes:
        stages.store.blobs.delete(sha)
    try:
        curate.seen.forget(stages.settings.cache_dir, hashes)
        curate.measurements.forget(stages.settings.cache_dir, hashes)
        curate.replay.forget(stages.settings.cache_dir, hashes)
    except OSError as error:
        raise _refused(error) from error


def of_snapshot(stages: Stages, snapshot: Snapshot) -> None:
    """Erase deleted feedback from a snapshot and everything derived from it: runs, gate reports, caches. Does
    nothing if all of its feedback still exists.

    Raises:
        StorageError: The disk or the database refuses.
    """
    path = Path(snapshot.path)
    feedback_ids = taken_back(stages, snapshot)
    if not feedback_ids:
        return
    products = curate.made_of(path, feedback_ids)
    try:
        _runs(stages, snapshot)
        if products.pictures:
            # named by hashes that only a trainer can tell, so that all are computed anew
            for name in ("latents", "features"):
                shutil.rmtree(stages.settings.cache_dir / name, ignore_errors=True)
    except OSError as error:
        raise _refused(error) from error
    reports(stages, snapshot.project, products.samples, feedback_ids)
    if path.is_dir():  # last, since it is what tells the rest
        curate.strip(path, feedback_ids)


def taken_back(stages: Stages, snapshot: Snapshot) -> set[str]:
    """The feedback in a snapshot, including its hold-out, that was deleted since."""
    ids = curate.feedback_of(Path(snapshot.path)).union(snapshot.feedback)
    with stages.store.read() as conn:
        return ids - feedback.existing(conn, sorted(ids))


def _runs(stages: Stages, snapshot: Snapshot) -> None:
    """Delete data written for other trainers, sampled answers and output. Runs in progress are left to their
    turn."""
    for run in every(stages.store, runs.list_by, snapshot.project, lambda ran: ran.id):
        if run.snapshot == snapshot.id and not run.state.is_open:
            disappear(stages.run_dir(run.id))


def reports(stages: Stages, project: str, samples: Collection[str], ids: Collection[str]) -> None:
    """Remove samples from gate reports, and what the gate found in pieces of feedback."""
    with stages.store.begin() as conn:
        flags.strip(conn, project, ids)
        changed, sheets = versions.strip_gates(conn, project, samples, ids)
        loop = loops.get(conn, project)
        if loop.state is LoopState.IDLE and loop.version in changed:
            loops.save(conn, loop.model_copy(update={"reason": ""}))  # it may name what was planted
    for sheet in sheets:
        stages.store.blobs.delete(sheet)


def _of_versions(stages: Stages, project: str) -> None:
    """Delete the files of withdrawn versions, except sides that another version still uses, and abandoned
    comparisons of their pictures."""
    home = stages.settings.home
    all_versions = list(every(stages.store, versions.list_by, project, lambda version: version.number))
    withdrawn = [version for version in all_versions if version.state is VersionState.WITHDRAWN]
    files_in_use = {
        Path(side)
        for version in all_versions
        if version.state is not VersionState.WITHDRAWN
        for side in (version.text_adapter, version.image_adapter)
        if side
    }
    for version in withdrawn:
        for place in (home / "gates").glob(f"{version.adapter_name}-*"):
            if not RunDirectory(place).is_locked():
                disappear(place)
        folder = integrity.folder(home, project, version.number)
        sides = [side for side in folder.iterdir() if side.is_dir()] if folder.is_dir() else []
        for side in sides:
            if not any(side == file or side in file.parents for file in files_in_use):
                integrity.mark_pruned(folder)
                disappear(side)


def _refused(error: OSError) -> StorageError:
    return StorageError(
        f"Not everything could be erased: {error.filename}: {error.strerror or error}.",
        "Mend the permissions, then take it back again: that goes on where it stopped.",
    )
