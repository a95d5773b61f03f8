"""The folder of a data set on its way in.

``dataset.json`` what is known of it; ``files/`` what was sent or fetched, beside each file that is not whole its
``.part``; ``sent.jsonl`` the hashes of what is whole; ``items.jsonl`` rows as feedback, laid aside; ``cursor.json`` how
far reading has come; ``blobs.txt`` the pictures that were stored for it alone; ``ids.txt`` the feedback that it became.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock, Timeout

from comfyloop import platforms
from comfyloop.datasets.record import DataSet, SentFile
from comfyloop.durable import write_whole
from comfyloop.errors import Conflict, InvalidInput, NotFound, StorageError, TooLarge
from comfyloop.platforms import sync
from comfyloop.settings import Settings
from comfyloop.sources import OUTSIDE

_PIECE = 2**20
_PART = ".part"


class DataSetFolder:
    """One data set's folder. Raises StorageError where the disk refuses."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = folder / "files"
        self.items, self.blobs = folder / "items.jsonl", folder / "blobs.txt"
        self.ids = folder / "ids.txt"
        self._cursor, self._sent = folder / "cursor.json", folder / "sent.jsonl"

    # --- what is known of it

    def read(self) -> DataSet:
        """Raises NotFound."""
        try:
            return DataSet.model_validate_json((self.folder / "dataset.json").read_text("utf-8"))
        except FileNotFoundError:
            raise NotFound(
                f"There is no data set {self.folder.name}.", "comfyloop data list shows what there is."
            ) from None
        except (OSError, ValueError) as error:
            raise StorageError(
                f"The data set {self.folder.name} cannot be read: {error}.", "Remove it, and add it again."
            ) from error

    def write(self, dataset: DataSet) -> DataSet:
        write_whole(self.folder / "dataset.json", dataset.model_dump_json(indent=1))
        return dataset

    def lock(self) -> FileLock:
        """Held by whoever reads or removes it, in whatever process; it is let go of when that process ends."""
        return FileLock(self.folder / "lock", timeout=0)

    # --- files that are sent

    def receive(self, path: str, data: bytes, offset: int, size: int, sha256: str, most: int) -> SentFile:
        """A piece of a file; with the last one it is checked, and is there.

        Raises:
            InvalidInput: The name leads out of the folder, or the bytes are not those that were announced.
            Conflict: The piece does not follow what has come so far.
            TooLarge: All files together are more than is allowed.
        """
        try:
            return self._receive(path, self.files / _checked(path), data, offset, size, sha256, most)
        except (NotADirectoryError, FileExistsError) as error:
            raise Conflict(f"{path} would be a file and a folder.", "Name each otherwise.") from error
        except OSError as error:
            raise StorageError(f"{path} cannot be kept: {error.strerror or error}.", "Make room.") from error

    def _receive(
        self, path: str, target: Path, data: bytes, offset: int, size: int, sha256: str, most: int
    ) -> SentFile:
        if target.is_file() and sha256_of(target) == sha256:
            return SentFile(path=path, bytes=size, sha256=sha256)
        part = target.with_name(target.name + _PART)
        part.parent.mkdir(parents=True, exist_ok=True)
        bytes_so_far = part.stat().st_size if part.exists() else 0
        if offset > bytes_so_far:
            raise Conflict(
                f"{path} has {bytes_so_far} bytes so far, and the piece begins at {offset}.",
                "Go on from there.",
            )
        if offset + len(data) > size:
            raise InvalidInput(
                f"{path} was to have {size} bytes, and more came.", "Send it from its beginning."
            )
        if self._bytes() + offset + len(data) > most:
            raise TooLarge(
                f"The data set has more than {most} bytes.",
                "Add it in parts, or raise the setting max_dataset_bytes.",
            )
        with part.open("r+b" if part.exists() else "xb") as out:
            out.truncate(offset)
            out.seek(offset)
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        if offset + len(data) < size:
            return SentFile(path=path, bytes=offset + len(data))
        if (arrived_sha256 := sha256_of(part)) != sha256:
            part.unlink()
            raise InvalidInput(
                f"{path} did not arrive as it was sent (its SHA-256 is {arrived_sha256[:12]}…).",
                "Send it again.",
            )
        if target.is_dir():  # what an earlier archive of this name was unpacked to
            shutil.rmtree(target)
        platforms.replace(part, target)
        self.begin_again()
        sync(target.parent)
        with self._sent.open("a", encoding="utf-8") as log:
            line = {"path": path, "bytes": size, "sha256": sha256, "all": self._bytes() + size}
            log.write(json.dumps(line) + "\n")
        return SentFile(path=path, bytes=size, sha256=sha256)

    def _bytes(self) -> int:
        """Of the files that are whole: the last one's line says it."""
        if not self._sent.exists():
            return 0
        with self._sent.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - 8192))
            lines = log.read().split(b"\n")
        return int(json.loads(lines[-2])["all"]) if len(lines) > 1 else 0

    def sent(self) -> Iterator[SentFile]:
        """The files that are whole."""
        if self._sent.exists():
            with self._sent.open(encoding="utf-8") as log:
                for line in log:
                    if line.endswith("\n"):
                        entry = json.loads(line)
                    yield SentFile(path=entry["path"], bytes=entry["bytes"], sha256=entry["sha256"])

    def partial(self) -> Iterator[SentFile]:
        if self.files.exists():
            for part in sorted(self.files.rglob(f"*{_PART}")):
                name = part.relative_to(self.files).as_posix().removesuffix(_PART)
                yield SentFile(path=name, bytes=part.stat().st_size)

    # --- how far reading has come

    def cursor(self) -> dict[str, Any]:
        try:
            content: dict[str, Any] = json.loads(self._cursor.read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return content

    def mark(self, cursor: dict[str, Any]) -> None:
        write_whole(self._cursor, json.dumps(cursor))

    def begin_again(self) -> None:
        """Forget what was read; what was sent stays."""
        for path in (self._cursor, self.items):
            path.unlink(missing_ok=True)

    def clean(self) -> None:
        """Leave nothing but what is known of it."""
        self.begin_again()
        for path in (self._sent, self.blobs):
            path.unlink(missing_ok=True)
        shutil.rmtree(self.files, ignore_errors=True)

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checked(path: str) -> PurePosixPath:
    """A file's name within the data. Raises InvalidInput."""
    pure = PurePosixPath(path)
    parts = pure.parts
    if (
        not parts
        or pure.is_absolute()
        or len(path) > 2000
        or any(part in ("..", ".") or "\\" in part or ":" in part or "\0" in part for part in parts)
        or any(len(part.encode()) > 250 for part in parts)
        or parts[-1].endswith(_PART)
        or any(part.startswith(".") for part in (parts[1:] if parts[0] == OUTSIDE and parts[1:] else parts))
    ):
        raise InvalidInput(
            f"{path[:100]!r} is no file's name within the data.",
            "Send names relative to the folder, with slashes.",
        )
    return pure


def open_place(settings: Settings, project: str, id: str) -> DataSetFolder:
    """Raises NotFound: There is no such data set."""
    place = DataSetFolder(settings.home / "datasets" / project / id)
    if "/" in id or "\\" in id or id.startswith("."):
        raise NotFound(f"There is no data set {id!r}.", "comfyloop data list shows what there is.")
    place.read()
    return place


def new_place(settings: Settings, dataset: DataSet) -> DataSetFolder:
    place = DataSetFolder(settings.home / "datasets" / dataset.project / dataset.id)
    place.files.mkdir(parents=True, exist_ok=True)
    place.write(dataset)
    return place


def places(settings: Settings, project: str) -> list[DataSetFolder]:
    folder = settings.home / "datasets" / project
    folders = (
        [path for path in folder.iterdir() if (path / "dataset.json").is_file()] if folder.is_dir() else []
    )
    return [DataSetFolder(path) for path in folders]


__all__ = ["DataSetFolder", "Timeout", "new_place", "open_place", "places", "sha256_of"]
