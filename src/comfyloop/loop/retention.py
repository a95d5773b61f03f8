"""What turns leave on the disk is removed after a while: run directories, snapshots, files of versions.

The rows in the database stay, and with them lineage, gate reports and logs of promotions. Never removed are, of each
project: the live version and the canary, all from which the live one descends, all that a rollback may go to, whatever
a kept version has a side or its held-out items from, and what a loop or a run is working on.
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
    """Remove what the settings `keep_versions` and `keep_runs` let go.

    Raises:
        StorageError: The database refuses. A folder that cannot be removed is left for the next time.
    """
    owner = this_process()
    gone: dict[str, list[str]] = {"versions": [], "runs": [], "snapshots": [], "busy": []}
    size = 0
    with store.read() as conn:
        names = [project.name for project in projects.list_all(conn)]
    for name in names:
        with store.begin() as conn:  # no turn begins meanwhile
            if not leases.acquire(conn, lease_of(name), owner, LEASE_SECONDS):
                gone["busy"].append(name)
                continue
        try:
            for kind, id, folder in _spent(store, settings, name):
                gone[kind].append(id)
                size += _bytes(folder)
                if not dry_run:
                    _remove(kind, folder)
        finally:
            with store.begin() as conn:
                leases.release(conn, lease_of(name), owner)
    return Pruned(bytes=size, **{kind: tuple(ids) for kind, ids in gone.items()})


def _spent(store: Store, settings: Settings, project: str) -> list[tuple[str, str, Path]]:
    """(kind, id, folder) of what the rules let go and is still on the disk."""
    with store.read() as conn:
        found = projects.get(conn, project)
        loop = loops.get(conn, project)
        trail = set(versions.trail(conn, project))
    every = {version.number: version for version in pages.every(store, versions.list_by, project, _number)}
    made = list(pages.every(store, snapshots.list_by, project, _id))
    ran = list(pages.every(store, runs.list_by, project, _id))
    if loop.state is not LoopState.IDLE:
        return []
    kept = {found.live, found.canary, loop.version, *trail, *_line(every, found.live)}
    kept |= (
        set(sorted(every, reverse=True)[: settings.keep_versions]) if settings.keep_versions else set(every)
    )
    with store.read() as conn:
        for number in list(kept & every.keys()):
            kept |= {owner.number for owner in integrity.owners(conn, every[number])}
    newest = len(ran) if not settings.keep_runs else settings.keep_runs
    runs_kept = {run.id for n, run in enumerate(ran) if n < newest or run.state.is_open} | {loop.run}
    # the next turn reads there how hard samples were
    runs_kept |= {every[number].run for number in _line(every, found.live)[:REMEMBERED]}
    data_kept = {snapshot.id for n, snapshot in enumerate(made) if n < newest or not settings.keep_runs}
    data_kept |= {run.snapshot for run in ran if run.id in runs_kept}
    data_kept |= {every[number].snapshot for number in kept & every.keys()} | {loop.snapshot}
    home = settings.home
    spent = [
        ("versions", f"{project}@{number}", integrity.folder(home, project, number))
        for number in sorted(every.keys() - kept)
    ]
    spent += [("runs", run.id, home / "runs" / run.id) for run in ran if run.id not in runs_kept]
    spent += [("snapshots", s.id, home / "snapshots" / s.id) for s in made if s.id not in data_kept]
    return [
        (kind, id, folder) for kind, id, folder in spent if folder.is_dir() and not integrity.pruned(folder)
    ]


def _number(version: Version) -> int:
    return version.number


def _id(row: Run | Snapshot) -> str:
    return row.id


def _line(every: dict[int, Version], live: int) -> list[int]:
    """A version and all from which it descends."""
    line: list[int] = []
    while live != BASE and live in every and live not in line:
        line.append(live)
        live = every[live].parent
    return line


def _remove(kind: str, folder: Path) -> None:
    """Whole, or so that what is left is not taken for whole."""
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
    """What removing a folder gives back: files that have another name elsewhere stay."""
    found = (path.lstat() for path in folder.rglob("*") if path.is_file())
    return sum(stat.st_size for stat in found if stat.st_nlink == 1)


class Keeper:
    """Prunes now and then while the service runs."""

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
                done = prune(self._store, self._settings)
            except (ComfyLoopError, OSError) as error:
                log.warning("Nothing was pruned: %s", error)
            else:
                if done.bytes:
                    log.warning("Pruned %d MB of old runs, snapshots and versions.", done.bytes // 2**20)
