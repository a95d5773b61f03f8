"""What a version has learned: the feedback in the snapshots that it and its ancestors were trained on, once the
gate has measured that it answers as the edits ask."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from comfyloop import formats
from comfyloop.errors import NotFound, StorageError
from comfyloop.records import BASE, Snapshot
from comfyloop.store import Store, feedback, lessons, snapshots, versions

AS_ASKED = 0.25
"""Mean edit distance, 0 to 1, of a version's answers to held-out corrections: so close it does by itself what examples
would do (they reach 0.26 at best, docs/examples.md). A version may be promoted long before."""

_PAGE = 1000


class Learned(NamedTuple):
    """Ids of feedback."""

    trained: frozenset[str]  # in the training data of the version or of one that it was trained from
    held: frozenset[str]  # the gate judged by it; nothing was trained on it

    def __contains__(self, feedback: object) -> bool:
        return feedback in self.trained


NOTHING = Learned(frozenset(), frozenset())


def learned(store: Store, project: str, version: int) -> Learned:
    """What the text side of a version and its ancestors learned; nothing, as long as the gate has not measured that
    it answers as the edits ask.

    If a snapshot's directory is gone, everything up to its newest feedback counts as learned.

    Raises:
        NotFound: There is no such version.
        StorageError: The database refuses.
    """
    if not _answers_as_asked(store, project, version):
        return NOTHING
    trained: set[str] = set()
    held: set[str] = set()
    for snapshot in _snapshots(store, project, version):
        try:
            for path in sorted(Path(snapshot.path).iterdir()):
                if path.suffix == ".jsonl":
                    (held if path.name.startswith(("holdout", "dev")) else trained).update(_ids(path))
        except (OSError, NotFound, StorageError):  # the directory is gone, or is going
            trained.update(_up_to(store, snapshot))
    return Learned(frozenset(trained), frozenset(held - trained))


def _answers_as_asked(store: Store, project: str, version: int) -> bool:
    """Judged by the gate report on it, or on the earlier version from which its text side is taken."""
    with store.read() as conn:
        at = versions.get(conn, project, version) if version != BASE else None
        while at is not None:
            measures = at.gate.measures if at.gate is not None else ()
            distances = [m.candidate for m in measures if (m.metric, m.slice) == ("edit_distance", "all")]
            if distances:
                return distances[0] <= AS_ASKED
            before = versions.find(conn, project, at.parent) if at.parent != BASE else None
            at = before if before is not None and before.text_adapter == at.text_adapter else None
    return False


def _snapshots(store: Store, project: str, version: int) -> list[Snapshot]:
    """The snapshots that the text side of a version was trained on, newest first."""
    by_id: dict[str, Snapshot] = {}
    with store.read() as conn:
        if version != BASE:
            versions.get(conn, project, version)
        for number in lessons.lineage(conn, project, version):
            row = versions.get(conn, project, number)
            parent = versions.find(conn, project, row.parent) if row.parent != BASE else None
            text_unchanged = (
                parent is not None and row.text_adapter == parent.text_adapter
            )  # only pictures were learnt
            if row.text_adapter is not None and not text_unchanged:
                snapshot = snapshots.find(conn, project, row.snapshot)
                if snapshot is not None:
                    by_id[snapshot.id] = snapshot
    return list(by_id.values())


def _ids(path: Path) -> Iterator[str]:
    for row in formats.objects(path):
        yield from row.get("feedback", ())


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
