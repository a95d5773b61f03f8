"""Bytes by the SHA-256 of their content: images, mostly.

A blob is at ``ab/cd/abcd…`` below a folder or an fsspec URL (``s3://bucket/path``). It is written once, atomically,
and verified against its name whenever it is read.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec

from comfyloop.errors import DamagedBlob, InvalidInput, NotFound, StorageError
from comfyloop.platforms import replace, sync

_SHA = re.compile(r"[0-9a-f]{64}")
_CHUNK = 2**20
# How the object stores that keep a content type beside the bytes want to be told.
_CONTENT_TYPE = {"s3": "ContentType", "s3a": "ContentType", "gs": "content_type", "gcs": "content_type"}


class Blobs:
    """A content-addressed store of bytes. Safe to share between threads and processes.

    Args:
        url: A folder, or any URL that fsspec can write.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            self._fs, self._root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise InvalidInput(
                f"The blob store {url!r} cannot be opened: {error}.",
                "Give a folder, or install 'comfyloop[remote]' for s3:// and gs:// URLs.",
            ) from error
        names = self._fs.protocol if isinstance(self._fs.protocol, tuple) else (self._fs.protocol,)
        self._protocol = names[0]
        self._local = "file" in names

    def put(self, data: bytes, media_type: str = "application/octet-stream") -> str:
        """Store `data` and return its SHA-256 in hex. On return it is on the disk (fsync).

        Args:
            media_type: Told to object stores that keep one; on a disk the bytes speak for themselves.

        Raises:
            StorageError: The disk is full or cannot be written. No half blob is left.
        """
        sha = hashlib.sha256(data).hexdigest()
        with self._refusals(sha):
            if self.exists(sha) and self._fs.cat_file(self._where(sha)) == data:
                return sha  # a damaged one is written anew
            if self._local:
                with self._new_file(sha) as out:
                    out.write(data)
            else:
                self._fs.pipe_file(self._where(sha), data, **self._told(media_type))
        return sha

    def put_file(self, source: Path, media_type: str = "application/octet-stream") -> str:
        """As `put`, for a file of any size, which is streamed."""
        digest = hashlib.sha256()
        with self._refusals(str(source)), source.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
            sha = digest.hexdigest()
            if not self._local:
                self._fs.put_file(str(source), self._where(sha), **self._told(media_type))
                return sha
            file.seek(0)
            again = hashlib.sha256()
            with self._new_file(sha) as out:
                while chunk := file.read(_CHUNK):
                    again.update(chunk)
                    out.write(chunk)
                if again.hexdigest() != sha:
                    raise StorageError(f"The file {source} changed while it was being stored.", "Try again.")
        return sha

    def get(self, sha: str) -> bytes:
        """The bytes of a blob, checked against its name.

        Raises:
            NotFound: There is no such blob.
            DamagedBlob: The stored bytes are not those that were put.
        """
        try:
            with self._refusals(sha):
                data: bytes = self._fs.cat_file(self._where(sha))
        except FileNotFoundError:
            raise NotFound(f"There is no blob {sha} in {self.url}.", "Upload the image again.") from None
        if hashlib.sha256(data).hexdigest() != sha:
            raise DamagedBlob(
                f"The blob {sha} in {self.url} is damaged: its bytes are not those that were stored.",
                "Upload the same image again: that repairs it.",
            )
        return data

    def path(self, sha: str) -> Path | None:
        """The path of the blob on this machine's disk; None if it is stored elsewhere or does not exist."""
        where = Path(self._where(sha))
        return where if self._local and where.is_file() else None

    def stamp(self, sha: str) -> str:
        """Size and modification time of the file, which change when it is replaced; "" if `path` is None."""
        if not self._local:
            return ""
        try:
            status = os.stat(self._where(sha))  # noqa: PTH116 - a Path costs as much as the look
        except OSError:
            return ""
        return f"{status.st_size}-{status.st_mtime_ns}" if stat.S_ISREG(status.st_mode) else ""

    def exists(self, sha: str) -> bool:
        with self._refusals(sha):
            return bool(self._fs.isfile(self._where(sha)))

    def delete(self, sha: str) -> bool:
        """Remove a blob; False when there was none."""
        try:
            with self._refusals(sha):
                self._fs.rm_file(self._where(sha))
        except FileNotFoundError:
            return False
        return True

    def list(self) -> Iterator[str]:
        """The hashes of all blobs, in no order."""
        with self._refusals(self.url):
            for _, _, names in self._fs.walk(self._root):
                for name in names:
                    if _SHA.fullmatch(name):
                        yield name

    def _where(self, sha: str) -> str:
        if not _SHA.fullmatch(sha):
            raise InvalidInput(f"{sha[:80]!r} is not the SHA-256 of a blob.", "Send 64 hexadecimal digits.")
        return f"{self._root}/{sha[:2]}/{sha[2:4]}/{sha}"

    def _told(self, media_type: str) -> dict[str, str]:
        option = _CONTENT_TYPE.get(self._protocol)
        return {option: media_type} if option else {}

    @contextlib.contextmanager
    def _new_file(self, sha: str) -> Iterator[Any]:
        """A temporary file that is renamed only once it is complete and flushed to disk."""
        final = Path(self._where(sha))
        _make_folders(final.parent)
        draft = final.with_name(f".{sha}.{secrets.token_hex(6)}.part")
        try:
            with draft.open("xb") as out:
                yield out
                out.flush()
                os.fsync(out.fileno())
            replace(draft, final)
            sync(final.parent)
        finally:
            draft.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _refusals(self, what: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise StorageError(
                    f"The disk of the blob store {self.url} is full; {what} was not stored.",
                    "Make room, then try again.",
                    retry_after=10.0,
                ) from error
            raise StorageError(
                f"The blob store {self.url} refused {what}: {error.strerror or error}.",
                "Check that it may be written.",
            ) from error


def _make_folders(folder: Path) -> None:
    """Create a folder and its parents durably, so that they survive a power cut."""
    if folder.is_dir():
        return
    _make_folders(folder.parent)
    folder.mkdir(exist_ok=True)
    sync(folder.parent)
