"""What a version has learnt already: the feedback in the snapshots that it and its parents were trained on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from comfyloop.records import BASE, Snapshot
from comfyloop.store import Store, feedback, lessons, snapshots, versions

_PAGE = 1000


class Learned(NamedTuple):
    """Ids of feedback."""

    trained: frozenset[str]  # in the training data of the version or of one that it was trained from
    held: frozenset[str]  # the gate judged by it; nothing was trained on it

    def __contains__(self, feedback: object) -> bool:
        return feedback in self.trained


NOTHING = Learned(frozenset(), frozenset())


def learned(store: Store, project: str, version: int) -> Learned:
    """What the text side of a version learnt, over all the versions that it came from.

    A snapshot whose directory is gone counts by its newest feedback: everything up to it was learnt.

    Raises:
        NotFound: There is no such version.
        StorageError: The database refuses.
    """
    trained: set[str] = set()
    held: set[str] = set()
    for snapshot in _snapshots(store, project, version):
        try:
            for path in sorted(Path(snapshot.path).iterdir()):
                if path.suffix == ".jsonl":
                    (held if path.name.startswith(("holdout", "dev")) else trained).update(_ids(path))
        except OSError:
            trained.update(_up_to(store, snapshot))
    return Learned(frozenset(trained), frozenset(held - trained))


def _snapshots(store: Store, project: str, version: int) -> list[Snapshot]:
    """Those that the text side of a version was trained on, the newest first."""
    found: dict[str, Snapshot] = {}
    with store.read() as conn:
        if version != BASE:
            versions.get(conn, project, version)
        for number in lessons.lineage(conn, project, version):
            row = versions.get(conn, project, number)
            parent = versions.find(conn, project, row.parent) if row.parent != BASE else None
            kept = parent is not None and row.text_adapter == parent.text_adapter  # only pictures were learnt
            if row.text_adapter is not None and not kept:
                snapshot = snapshots.find(conn, project, row.snapshot)
                if snapshot is not None:
                    found[snapshot.id] = snapshot
    return list(found.values())


def _ids(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield from json.loads(line).get("feedback", ())


def _up_to(store: Store, snapshot: Snapshot) -> Iterator[str]:
    after = 0
    while True:
        with store.read() as conn:
            page = feedback.ids_after(conn, snapshot.project, after, limit=_PAGE)
        for after, id in page:
            if after > snapshot.feedback_seq:
                return
            yield id
        if len(page) < _PAGE:
            return
