"""Verifies that the files of a version are those that were judged, by their hash in the database."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from sqlalchemy import Connection

from comfyloop.errors import Conflict, DamagedVersion, NotFound
from comfyloop.records import BASE, Version, VersionState
from comfyloop.store import versions

_PRUNED = "pruned.txt"


def folder(home: Path, project: str, number: int) -> Path:
    """Where the files of a version lie."""
    return home / "versions" / project / str(number)


def pruned(folder: Path) -> bool:
    """Whether the files of the version that lay there were removed on purpose."""
    return (folder / _PRUNED).exists()


def mark_pruned(folder: Path) -> None:
    (folder / _PRUNED).write_text("Removed by the settings keep_versions and keep_runs.\n", "utf-8")


def hash_of(*adapters: Path, known: Mapping[Path, bytes] | None = None) -> str:
    """SHA-256 over the names and contents of adapters' files.

    Args:
        known: SHA-256 of files that were hashed just now: these are not read again.

    Raises:
        OSError: One of them cannot be read.
    """
    digest = hashlib.sha256()
    for adapter in adapters:
        files = sorted(path for path in adapter.rglob("*") if path.is_file()) or [adapter]
        for file in files:
            digest.update(file.relative_to(adapter.parent).as_posix().encode() + b"\0")
            digest.update((known or {}).get(file) or _sha256(file))
    return digest.hexdigest()


def _sha256(file: Path) -> bytes:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").digest()


def check(conn: Connection, version: Version) -> None:
    """Verify the hashes of all files of a version, and of the earlier versions from which its sides are taken.

    Raises:
        DamagedVersion: One is gone, or is not what was trained and judged.
        NotFound: They were pruned.
        Conflict: It learned from feedback that was taken back, and its files went with that.
    """
    for owner in owners(conn, version):
        if owner.state is VersionState.WITHDRAWN:
            raise Conflict(
                f"{owner.project}@{owner.number} learned from feedback that was taken back.",
                "Start a turn: it learns the rest without it.",
            )
        for side in _own(owner, None):
            if pruned(Path(side).parent) or pruned(Path(side).parent.parent):
                raise NotFound(
                    f"The files of {owner.project}@{owner.number} were removed, as old ones are.",
                    "The settings keep_versions and keep_runs say how many stay.",
                )
        if not owner.sha256:  # made by hand
            continue
        parent = versions.find(conn, owner.project, owner.parent) if owner.parent != BASE else None
        paths = [Path(path) for path in _own(owner, parent)]
        try:
            sha256 = hash_of(*paths)
        except OSError as error:
            raise DamagedVersion(
                f"The files of {owner.project}@{owner.number} cannot be read: {error.filename}: {error.strerror}.",
                _mend(version),
            ) from error
        if sha256 != owner.sha256:
            raise DamagedVersion(
                f"The files of {owner.project}@{owner.number} in {paths[0].parent} are not those that were judged.",
                _mend(version),
            )


def owners(conn: Connection, version: Version) -> list[Version]:
    """The versions in whose training the sides of `version` were made."""
    wanted = {version.text_adapter, version.image_adapter} - {None}
    owners: list[Version] = []
    at: Version | None = version
    while at is not None and wanted:
        parent = versions.find(conn, at.project, at.parent) if at.parent != BASE else None
        own = wanted & set(_own(at, parent))
        if own:
            owners.append(at)
            wanted -= own
        at = parent
    return owners


def _own(version: Version, parent: Version | None) -> list[str]:
    """The sides that this version did not take over from its parent, in the order in which they were hashed."""
    sides = (
        (version.text_adapter, parent and parent.text_adapter),
        (version.image_adapter, parent and parent.image_adapter),
    )
    return [side for side, before in sides if side and side != before]


def _mend(version: Version) -> str:
    return f"Put back a copy, or roll back: `comfyloop rollback` leaves {version.project}@{version.number}."
