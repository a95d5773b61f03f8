"""Removes old run directories, snapshots and files of versions from the disk.

The rows in the database stay, and with them lineage, gate reports and logs of promotions. For each project the
following are never removed: the live version, the canary, all ancestors of the live version, all rollback targets,
versions and snapshots that a kept version takes a side or its held-out items from, and anything that a loop or a
run is working on.
"""

from __future__ import annotations

import logging
import shutil
import threading
from pathlib import Path

from comfyloop import integrity
from comfyloop.durable import disappear
from comfyloop.errors import ComfyLoopError
from comfyloop.loop.lease import lease_of, this_process
from comfyloop.loop.stages import REMEMBERED
from comfyloop.records import BASE, LoopState, Pruned, Run, Snapshot, Version
from comfyloop.settings import Settings
from comfyloop.store import Store, leases, loops, pages, projects, runs, snapshots, versions

log = logging.getLogger(__name__)

FIRST_SECONDS, EVERY_SECONDS = 300.0, 3600.0
LEASE_SECONDS = 600.0


def prune(store: Store, settings: Settings, *, dry_run: bool = False) -> Pruned:
    """Remove what is beyond the settings `keep_versions` and `keep_runs`.

    Raises:
        StorageError: The database refuses. A folder that cannot be removed is left for the next time.
    """
    owner = this_process()
    removed_ids: dict[str, list[str]] = {"versions": [], "runs": [], "snapshots": [], "busy": []}
    size = 0
    with store.read() as conn:
        names = [project.name for project in projects.list_all(conn)]
    for name in names:
        with store.begin() as conn:  # no turn begins meanwhile
            if not leases.acquire(conn, lease_of(name), owner, LEASE_SECONDS):
                removed_ids["busy"].append(name)
                continue
        try:
            for kind, id, folder in _spent(store, settings, name):
                removed_ids[kind].append(id)
                size += _bytes(folder)
                if not dry_run:
                    _remove(kind, folder)
        finally:
            with store.begin() as conn:
                leases.release(conn, lease_of(name), owner)
    return Pruned(bytes=size, **{kind: tuple(ids) for kind, ids in removed_ids.items()})


def _spent(store: Store, settings: Settings, project: str) -> list[tuple[str, str, Path]]:
    """(kind, id, folder) of everything that may be removed and is still on the disk."""
    with store.read() as conn:
        record = projects.get(conn, project)
        loop = loops.get(conn, project)
        trail = set(versions.trail(conn, project))
    every = {version.number: version for version in pages.every(store, versions.list_by, project, _number)}
    all_snapshots = list(pages.every(store, snapshots.list_by, project, _id))
    all_runs = list(pages.every(store, runs.list_by, project, _id))
    if loop.state is not LoopState.IDLE:
        return []
    versions_to_keep = {record.live, record.canary, loop.version, *trail, *_line(every, record.live)}
    versions_to_keep |= (
        set(sorted(every, reverse=True)[: settings.keep_versions]) if settings.keep_versions else set(every)
    )
    with store.read() as conn:
        for number in list(versions_to_keep & every.keys()):
            versions_to_keep |= {owner.number for owner in integrity.owners(conn, every[number])}
    newest = len(all_runs) if not settings.keep_runs else settings.keep_runs
    runs_to_keep = {run.id for n, run in enumerate(all_runs) if n < newest or run.state.is_open} | {loop.run}
    # the next turn reads there how hard samples were
    runs_to_keep |= {every[number].run for number in _line(every, record.live)[:REMEMBERED]}
    data_to_keep = {
        snapshot.id for n, snapshot in enumerate(all_snapshots) if n < newest or not settings.keep_runs
    }
    data_to_keep |= {run.snapshot for run in all_runs if run.id in runs_to_keep}
    data_to_keep |= {every[number].snapshot for number in versions_to_keep & every.keys()} | {loop.snapshot}
    home = settings.home
    spent = [
        ("versions", f"{project}@{number}", integrity.folder(home, project, number))
        for number in sorted(every.keys() - versions_to_keep)
    ]
    spent += [("runs", run.id, home / "runs" / run.id) for run in all_runs if run.id not in runs_to_keep]
    spent += [
        ("snapshots", s.id, home / "snapshots" / s.id) for s in all_snapshots if s.id not in data_to_keep
    ]
    return [
        (kind, id, folder) for kind, id, folder in spent if folder.is_dir() and not integrity.pruned(folder)
    ]


def _number(version: Version) -> int:
    return version.number


def _id(row: Run | Snapshot) -> str:
    return row.id


def _line(every: dict[int, Version], live: int) -> list[int]:
    """A version and all of its ancestors."""
    line: list[int] = []
    while live != BASE and live in every and live not in line:
        line.append(live)
        live = every[live].parent
    return line


def _remove(kind: str, folder: Path) -> None:
    """Remove a folder completely, or mark the rest so that it is not taken for complete."""
    try:
        if kind == "versions":
            integrity.mark_pruned(folder)
            for side in folder.iterdir():
                if side.is_dir():
                    shutil.rmtree(side)
        else:
            disappear(folder)
    except OSError as error:
        log.warning("%s cannot be removed: %s", folder, error)


def _bytes(folder: Path) -> int:
    """Bytes that removing a folder frees: files with another hard link are not counted."""
    stats = (path.lstat() for path in folder.rglob("*") if path.is_file())
    return sum(stat.st_size for stat in stats if stat.st_nlink == 1)


class Keeper:
    """Prunes periodically while the service runs."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store, self._settings = store, settings
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="retention", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def _keep(self) -> None:
        pause = FIRST_SECONDS
        while not self._over.wait(pause):
            pause = EVERY_SECONDS
            try:
                pruning = prune(self._store, self._settings)
            except (ComfyLoopError, OSError) as error:
                log.warning("Nothing was pruned: %s", error)
            else:
                if pruning.bytes:
                    log.warning("Pruned %d MB of old runs, snapshots and versions.", pruning.bytes // 2**20)
