"""A deterministic zip, whose bytes depend only on the names and contents of its files.

Nothing is compressed, and every field except names, sizes and checksums has a fixed value. A reader therefore gets
exactly what was signed, to the last byte; nothing can be hidden in the file.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from comfyloop.errors import InvalidInput, StorageError, TooLarge
from comfyloop.stable_diffusion.header import PICKLES

MOST_FILES = 64
MOST_BYTES = 2**32 - 2**20
"""What a zip without extensions can hold."""
CHUNK = 2**20

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_VERSION, _UNIX, _DAY = 20, 3, 33  # 1980-01-01
_MODE = (stat.S_IFREG | 0o644) << 16


class ArchivePiece(NamedTuple):
    """One file to pack: bytes, or `head` followed by the content of a file from an offset on."""

    name: str
    head: bytes = b""
    path: Path | None = None
    offset: int = 0

    @property
    def size(self) -> int:
        return len(self.head) + (self.path.stat().st_size - self.offset if self.path else 0)

    def chunks(self) -> Iterator[bytes]:
        if self.head:
            yield self.head
        if self.path is not None:
            with self.path.open("rb") as handle:
                handle.seek(self.offset)
                while chunk := handle.read(CHUNK):
                    yield chunk


class ArchivedFile(NamedTuple):
    """One file in an archive; `sha256` is empty until somebody has read it."""

    name: str
    bytes: int
    crc32: int
    sha256: str = ""


class ArchiveWriter:
    """Packs one file after the other into `handle`; `close` ends it.

    Raises:
        TooLarge: It would not fit into a zip.
        OSError: The disk refuses.
    """

    def __init__(self, handle: BinaryIO) -> None:
        self._handle = handle
        self._packed: list[ArchivedFile] = []
        self._at = 0

    def add(self, piece: ArchivePiece) -> ArchivedFile:
        if self._at + piece.size > MOST_BYTES or len(self._packed) >= MOST_FILES:
            raise TooLarge(
                f"With {piece.name} the bundle would have more than 4 GB.", "Train with a lower lora_r."
            )
        start = self._at
        self._write(_local(ArchivedFile(piece.name, 0, 0)))
        size, crc, digest = 0, 0, hashlib.sha256()
        for chunk in piece.chunks():
            digest.update(chunk)
            crc = zlib.crc32(chunk, crc)
            size += len(chunk)
            self._write(chunk)
        packed = ArchivedFile(piece.name, size, crc, digest.hexdigest())
        self._handle.seek(start)
        self._handle.write(_local(packed))
        self._handle.seek(self._at)
        self._packed.append(packed)
        return packed

    def close(self) -> None:
        self._write(_index(self._packed))

    def _write(self, data: bytes) -> None:
        self._handle.write(data)
        self._at += len(data)


class Reader:
    """A received archive, checked as a whole before anything of it is read.

    Args:
        name: What it is called in sentences.

    Raises:
        InvalidInput: It is no such archive, or has something in it that no bundle has; says what.
    """

    def __init__(self, handle: BinaryIO, name: str, most_bytes: int) -> None:
        self._handle = handle
        self.name = name
        size = handle.seek(0, 2)
        entries = _listed(handle, size, name)
        for info in entries:
            _refuse_odd_file(name, info)
        _refuse_more_than_it_holds(name, entries, size, most_bytes)
        self.files = [ArchivedFile(info.filename, info.file_size, info.CRC) for info in entries]
        names = [file.name for file in self.files]
        if twice := next((n for n in names if names.count(n) > 1), None):
            raise InvalidInput(f"{name} has two files named {shown(twice)}.", ASK_AGAIN)
        self._starts: dict[str, int] = {}
        self._refuse_other_bytes(size)

    def _refuse_other_bytes(self, size: int) -> None:
        """Refuse a file that differs from what a writer produces for the same contents: no extra bytes before,
        between or after."""
        at = 0
        odd = InvalidInput(f"{self.name} was changed or packed again after it was made.", ASK_AGAIN)
        for file in self.files:
            header = _local(file)
            self._handle.seek(at)
            if self._handle.read(len(header)) != header:
                raise odd
            self._starts[file.name] = at + len(header)
            at += len(header) + file.bytes
        index = _index(self.files)
        self._handle.seek(at)
        if at + len(index) != size or self._handle.read() != index:
            raise odd

    def chunks(self, file: ArchivedFile) -> Iterator[bytes]:
        self._handle.seek(self._starts[file.name])
        bytes_left = file.bytes
        while bytes_left:
            chunk = self._handle.read(min(CHUNK, bytes_left))
            if not chunk:
                raise InvalidInput(f"{self.name} is cut off.", ASK_AGAIN)
            bytes_left -= len(chunk)
            yield chunk

    def whole(self, look: Callable[[ArchivedFile, bytes], object]) -> str:
        """SHA-256 of the archive, computed while passing each file's chunks to `look`: it is read only once."""
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(_local(file))
            for chunk in self.chunks(file):
                digest.update(chunk)
                look(file, chunk)
        digest.update(_index(self.files))
        return digest.hexdigest()

    def read(self, file: ArchivedFile, most: int) -> bytes:
        """A small file, its checksum compared."""
        if file.bytes > most:
            raise InvalidInput(
                f"{file.name} in {self.name} has {file.bytes} bytes, more than {most}.", ASK_AGAIN
            )
        data = b"".join(self.chunks(file))
        if zlib.crc32(data) != file.crc32:
            raise InvalidInput(f"{file.name} in {self.name} is damaged.", ASK_AGAIN)
        return data


ASK_AGAIN = "Ask who made it for the file again."


def shown(name: str) -> str:
    return repr(name[:80])


def disk_error(place: Path, error: OSError) -> StorageError:
    if error.errno == errno.ENOSPC:
        return StorageError(
            f"The disk is full: {place} could not be written.", "Make room, then do it again."
        )
    return StorageError(f"{place} could not be written: {error.strerror or error}.")


def _listed(handle: BinaryIO, size: int, name: str) -> list[zipfile.ZipInfo]:
    """The entries of a zip. Its end record is checked first, which limits what is read."""
    no_zip = InvalidInput(f"{name} is no bundle: it is not a zip file, or it is cut off.", ASK_AGAIN)
    if size < _END.size:
        raise no_zip
    handle.seek(size - _END.size)
    magic, _, _, _, count, index, _, comment = _END.unpack(handle.read())
    if magic != b"PK\5\6" or comment:
        raise no_zip
    if count > MOST_FILES or index > MOST_FILES * 512:
        raise InvalidInput(
            f"{name} says that it holds {count} files; a bundle has {MOST_FILES} at most.", ASK_AGAIN
        )
    try:
        with zipfile.ZipFile(handle) as archive:
            return sorted(archive.infolist(), key=lambda info: info.header_offset)
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, struct.error, EOFError):
        raise no_zip from None


def _refuse_odd_file(archive: str, info: zipfile.ZipInfo) -> None:
    name = info.orig_filename
    parts = name.replace("\\", "/").split("/")
    if ".." in parts or "" in parts[:1] or ":" in parts[0] or "\\" in name or "\0" in name:
        raise InvalidInput(
            f"{archive} holds a file that would be written outside its folder: {shown(name)}.", ASK_AGAIN
        )
    mode = info.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        kind = "a link" if stat.S_ISLNK(mode) else "a folder or device"
        raise InvalidInput(
            f"{archive} holds {kind} ({shown(name)}); a bundle holds plain files only.", ASK_AGAIN
        )
    if Path(name).suffix.lower() in PICKLES | {".pickle"}:
        raise InvalidInput(
            f"{archive} holds a pickle ({shown(name)}), which runs code when it is read.",
            "Ask for it as safetensors.",
        )
    if info.flag_bits & 1:
        raise InvalidInput(f"{archive} is encrypted.", "Ask for it without a password.")


def _refuse_more_than_it_holds(
    archive: str, entries: Iterable[zipfile.ZipInfo], size: int, most: int
) -> None:
    entries = list(entries)
    total = sum(info.file_size for info in entries)
    compressed_entries = [info for info in entries if info.compress_type != zipfile.ZIP_STORED]
    if compressed_entries or total > size:
        raise InvalidInput(
            f"{archive} would grow from {size} to {total} bytes when it is unpacked; a bundle is stored as it is.",
            ASK_AGAIN,
        )
    if total > most:
        raise TooLarge(
            f"{archive} holds {total} bytes, more than {most}.", "Raise the setting max_bundle_bytes."
        )


def _local(file: ArchivedFile) -> bytes:
    name = file.name.encode()
    return _LOCAL.pack(
        b"PK\3\4", _VERSION, 0, 0, 0, _DAY, file.crc32, file.bytes, file.bytes, len(name), 0
    ) + name  # fmt: skip


def _index(files: list[ArchivedFile]) -> bytes:
    sizes = (len(_local(file)) + file.bytes for file in files)
    starts = list(itertools.accumulate(sizes, initial=0))
    entries = b"".join(
        _CENTRAL.pack(
            b"PK\1\2", _UNIX << 8 | _VERSION, _VERSION, 0, 0, 0, _DAY, file.crc32, file.bytes, file.bytes,
            len(file.name.encode()), 0, 0, 0, 0, _MODE, start,
        ) + file.name.encode()
        for file, start in zip(files, starts, strict=False)
    )  # fmt: skip
    return entries + _END.pack(b"PK\5\6", 0, 0, len(files), len(files), len(entries), starts[-1], 0)
