"""What people did, on the disk until the service has it.

An append-only queue of JSON lines in numbered segments. `append` returns after fsync; a segment is deleted when
everything in it was delivered, never before. When the spool is full or the disk is, `append` refuses with a
sentence: what is in there already stays. Images lie beside the segments, named by their hash, and go when no
waiting item needs them.

Layout: ``000001.jsonl …``, ``images/<sha256>``, ``delivered.json`` (how far), ``refused.jsonl`` (what the service
would not take, with its reason), ``lock``.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import platforms

Item = dict[str, Any]


class SpoolError(Exception):
    """The spool cannot take more; the message is a sentence for the person."""


class SpoolHeld(Exception):
    """Another process has this folder."""


@dataclass(frozen=True)
class SpoolEntry:
    """One waiting item; `segment` and `end` say where the queue goes on after it. A broken line has no item."""

    item: Item | None
    line: bytes
    segment: int
    end: int


class Spool:
    """Safe for threads; one process per folder (`Spool.open` finds a free one).

    Args:
        folder: Made when missing.
        max_bytes: Bound of segments and images together.
        segment_bytes: A segment is closed when it has grown beyond this.
    """

    def __init__(self, folder: Path, max_bytes: int = 512 * 2**20, segment_bytes: int = 4 * 2**20) -> None:
        self.folder, self.max_bytes, self.segment_bytes = folder, max_bytes, segment_bytes
        self._mutex = threading.RLock()
        self._images_dir = folder / "images"
        self._images_dir.mkdir(parents=True, exist_ok=True)
        self._lock_file = (folder / "lock").open("a+b")
        if not platforms.lock(self._lock_file):
            self._lock_file.close()
            raise SpoolHeld
        self._needs: Counter[str] = Counter()  # image -> waiting items that refer to it
        self.waiting = 0
        self.problem = ""  # why the last append was refused; empty when it was taken
        self.refused_count = len(self.refused())
        self._segment, self._offset = self._read_position()
        segments = self._segments()
        if self._segment not in segments:  # delivered to its end and deleted
            self._segment = min((n for n in segments if n > self._segment), default=self._segment + 1)
            self._offset = 0
        self._writing = max([*segments, self._segment])
        _cut_torn_line(self._path(self._writing))
        for entry in self._entries():
            self.waiting += 1
            self._needs.update(images_of(entry.item))
        self._clean()
        self._bytes = sum(p.stat().st_size for p in self._files())

    @classmethod
    def open(cls, folder: Path, **bounds: int) -> Spool:
        """The first folder ``<folder>/<n>`` that no other process holds. Raises SpoolError where none can be made."""
        for number in range(64):
            try:
                return cls(folder / str(number), **bounds)
            except SpoolHeld:
                continue
            except OSError as error:
                raise SpoolError(
                    f"Capture is paused: {folder} cannot be used ({error.strerror}). "
                    "Mend its rights or free some space."
                ) from error
        raise SpoolError(f"All 64 spools under {folder} are in use. Stop a ComfyUI, or mend the folder's rights.")

    def close(self) -> None:
        self._lock_file.close()

    # --- in

    def append(self, items: Sequence[Item], images: Mapping[str, bytes] | None = None) -> None:
        """Items and the images they name, on the disk when this returns.

        Raises:
            SpoolError: The spool is full, or the disk refused. Nothing of this call is kept.
        """
        data = b"".join(map(_line, items))
        with self._mutex:
            try:
                self._append(items, data, images or {})
            except OSError as error:
                self.problem = (
                    f"Capture is paused: the disk of {self.folder} refused ({error.strerror}). Free some space."
                )
                raise SpoolError(self.problem) from error
            self.problem = ""

    def _append(self, items: Sequence[Item], data: bytes, images: Mapping[str, bytes]) -> None:
        new = {sha: body for sha, body in images.items() if not (self._images_dir / sha).exists()}
        size = len(data) + sum(map(len, new.values()))
        if self._bytes + size > self.max_bytes:
            self.problem = (
                f"Capture is paused: {self.waiting} items ({self._bytes / 2**20:.0f} MB) wait for the service and "
                f"the spool's bound is {self.max_bytes / 2**20:.0f} MB. Start the service, and they are delivered."
            )
            raise SpoolError(self.problem)
        for sha, body in new.items():
            _write_whole(self._images_dir / sha, body)
        path = self._path(self._writing)
        if path.exists() and path.stat().st_size > self.segment_bytes:
            self._writing += 1
            path = self._path(self._writing)
        before = path.stat().st_size if path.exists() else 0
        try:
            with path.open("ab", buffering=0) as file:
                view = memoryview(data)
                while view:
                    view = view[file.write(view) :]
                os.fsync(file.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(path, before)
            raise
        if before == 0:
            platforms.sync_folder(self.folder)
        self._bytes += size
        self.waiting += len(items)
        for item in items:
            self._needs.update(images_of(item))

    # --- out

    def pending(self, most: int = 100, most_bytes: int = 2**20) -> list[SpoolEntry]:
        """The oldest entries, in order: at least one when any waits."""
        found: list[SpoolEntry] = []
        size = 0
        with self._mutex:
            for entry in self._entries():
                size += len(entry.line)
                if found and (len(found) >= most or size > most_bytes):
                    break
                found.append(entry)
        return found

    def image(self, sha: str) -> bytes | None:
        with contextlib.suppress(FileNotFoundError):
            return (self._images_dir / sha).read_bytes()
        return None

    def delivered(self, entries: Sequence[SpoolEntry]) -> None:
        """Move on behind these entries, which `pending` gave; what nothing needs any more is deleted.

        Entries that were behind already (a delivery that was broken off and begun again) do not count twice.
        """
        with self._mutex:
            entries = [e for e in entries if (e.segment, e.end) > (self._segment, self._offset)]
            if not entries:
                return
            self._segment, self._offset = entries[-1].segment, entries[-1].end
            _write_whole(
                self.folder / "delivered.json",
                json.dumps({"segment": self._segment, "offset": self._offset}).encode(),
            )
            self.waiting -= len(entries)
            for entry in entries:
                self._needs.subtract(images_of(entry.item))
            self._clean()
            self._bytes = sum(p.stat().st_size for p in self._files())

    def refuse(self, entry: SpoolEntry, sentence: str) -> None:
        """Put an entry aside with the reason, and go on behind it. Its images stay."""
        with self._mutex:
            line = json.dumps({"why": sentence, "item": entry.item or entry.line.decode(errors="replace")})
            with (self.folder / "refused.jsonl").open("ab") as file:
                file.write(line.encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            self.refused_count += 1
            self.delivered([entry])

    def refused(self) -> list[dict[str, Any]]:
        """``{"why", "item"}`` of everything put aside."""
        path = self.folder / "refused.jsonl"
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_bytes().splitlines() if line.endswith(b"}")]

    def retry_refused(self) -> int:
        """Queue again what was put aside (say, when the missing project has been made); returns how many."""
        with self._mutex:
            refused = self.refused()
            items = [r["item"] for r in refused if isinstance(r["item"], dict)]
            damaged = [r for r in refused if not isinstance(r["item"], dict)]
            if items:
                self.append(items)  # a crash before the next line sends them twice: the service stores them once
                rest = b"".join(json.dumps(r).encode() + b"\n" for r in damaged)
                _write_whole(self.folder / "refused.jsonl", rest)
                self.refused_count = len(damaged)
            return len(items)

    def discard_refused(self) -> int:
        """Throw away what was put aside, with the images that nothing else needs; returns how many."""
        with self._mutex:
            count = len(self.refused())
            _write_whole(self.folder / "refused.jsonl", b"")
            self.refused_count = 0
            self._clean()
            self._bytes = sum(p.stat().st_size for p in self._files())
            return count

    # --- files

    def _entries(self) -> Iterator[SpoolEntry]:
        for number in self._segments():
            if number < self._segment:
                continue
            start = self._offset if number == self._segment else 0
            with self._path(number).open("rb") as file:
                file.seek(start)
                for line in file:
                    start += len(line)
                    item: Item | None = None
                    with contextlib.suppress(ValueError):
                        loaded = json.loads(line)
                        item = loaded if isinstance(loaded, dict) else None
                    yield SpoolEntry(item, line, number, start)

    def _clean(self) -> None:
        for number in self._segments():
            done = number < self._segment
            if number == self._segment and self._offset and self._offset >= self._path(number).stat().st_size:
                done = True  # all of the last segment: begin a new one
                self._segment, self._offset = number + 1, 0
                self._writing = max(self._writing, self._segment)
            if done:
                platforms.unlink(self._path(number))
        kept = {sha for r in self.refused() if isinstance(r["item"], dict) for sha in images_of(r["item"])}
        for path in self._images_dir.iterdir():
            if self._needs[path.name] <= 0 and path.name not in kept:
                platforms.unlink(path)

    def _read_position(self) -> tuple[int, int]:
        try:
            where = json.loads((self.folder / "delivered.json").read_bytes())
            return int(where["segment"]), int(where["offset"])
        except (OSError, ValueError, KeyError):
            return 1, 0  # what is sent again is stored once

    def _segments(self) -> list[int]:
        return sorted(int(p.stem) for p in self.folder.glob("*.jsonl") if p.stem.isdigit())

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.jsonl"

    def _files(self) -> Iterator[Path]:
        yield from map(self._path, self._segments())
        yield from self._images_dir.iterdir()


def images_of(item: Item | None) -> set[str]:
    """The hashes of the images that an item of feedback names."""
    if item is None:
        return set()
    found = {item["image"]} if isinstance(item.get("image"), str) else set()
    for field in ("picked", "over", "images_before", "images_after", "kept"):
        found.update(item.get(field) or ())
    for message in item.get("messages") or ():
        found.update(part["sha256"] for part in message["content"] if part["type"] == "image")
    return found


def _line(item: Item) -> bytes:
    """JSON with a line's end; half a character (a lone surrogate, which no file can hold) becomes a question mark."""
    return json.dumps(item, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n"


def _write_whole(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{threading.get_ident()}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        platforms.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    platforms.sync_folder(path.parent)


def _cut_torn_line(path: Path) -> None:
    """A crash in the middle of a write leaves a line without its end; it was never acknowledged."""
    if not path.exists():
        return
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(path, whole)
