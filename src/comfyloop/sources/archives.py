"""Archives unpacked: nothing outside their folder, no links, and no more bytes than are allowed, whatever they say."""

from __future__ import annotations

import gzip
import lzma
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO

from comfyloop import platforms
from comfyloop.durable import appear
from comfyloop.errors import DataError, TooLarge
from comfyloop.sources.tree import OUTSIDE, tree_of

MOST_FILES = 1_000_000
DEEPEST = 2
"""Archives within archives: a ZIP of shards, and no more."""
MOST_TIMES = 200
"""Times that packed data may grow; texts grow 10 to 50 times."""
_ALWAYS = 64 * 2**20
"""Bytes that may come of any archive, however small."""
_PIECE = 2**20
_TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_CHINESE = re.compile(r"[\x20-\x7e\u2010-\u2027\u3000-\u9fff\uff00-\uffef]+")
_PASSED_OVER = ("__MACOSX/", ".DS_Store", "Thumbs.db", "desktop.ini")


def is_archive(name: str) -> bool:
    lower = name.lower()
    return lower.endswith((".zip", ".gz", *_TARS))


def unpack_all(folder: Path, most_bytes: int, told: Callable[[str], object] = lambda name: None) -> int:
    """Put in the place of each archive below a folder a folder of the same name. What is done stays done.

    Returns:
        The bytes that came out.

    Raises:
        DataError: An archive is damaged, encrypted, or leads out of its folder.
        TooLarge: It unpacks to more than is allowed.
    """
    budget = _Budget(most_bytes)
    for depth in range(DEEPEST + 1):
        names = [name for name in tree_of(folder).files if is_archive(name)]
        if names and depth == DEEPEST:
            raise DataError(
                f"{names[0]} is an archive within archives within an archive.",
                "Unpack it, and add what was in it.",
            )
        for name in names:
            told(name)
            _unpack(folder / name, name, budget)
    return budget.used


class _Budget:
    """What may still be written, over all archives."""

    def __init__(self, most: int) -> None:
        self.most, self.used, self.files = most, 0, 0

    def spend(self, archive: str, size: int, packed: int, own: int) -> None:
        self.used += size
        if self.used > self.most:
            raise TooLarge(
                f"{archive} unpacks to more than {self.most} bytes.",
                "Add it in parts, or raise the setting max_dataset_bytes.",
            )
        if own > max(_ALWAYS, packed * MOST_TIMES):
            raise TooLarge(
                f"{archive} has {packed} bytes and unpacks to more than {MOST_TIMES} times as many: it is made to fill "
                "the disk.",
                "Unpack it yourself if you trust it, and add the folder.",
            )

    def another(self, archive: str) -> None:
        self.files += 1
        if self.files > MOST_FILES:
            raise TooLarge(f"{archive} holds more than {MOST_FILES} files.", "Add it in parts.")


def _unpack(path: Path, shown: str, budget: _Budget) -> None:
    """The archive becomes a folder of its name, whole or not at all."""
    lower = path.name.lower()
    making = path.with_name(f"{path.name}.unpacked")

    def write(folder: Path) -> None:
        with _damage(shown):
            if lower.endswith(".zip"):
                _zip(path, shown, folder, budget)
            elif lower.endswith(_TARS):
                _tar(path, shown, folder, budget)
            else:
                _gzip(path, shown, folder, budget)

    appear(making, write)
    path.unlink()
    platforms.rename(making, path)


@contextmanager
def _damage(shown: str) -> Iterator[None]:
    try:
        yield
    except (
        zipfile.BadZipFile,
        tarfile.TarError,
        zlib.error,
        lzma.LZMAError,
        gzip.BadGzipFile,
        EOFError,
    ) as error:
        raise DataError(
            f"The archive {shown} is damaged or broken off: {error}.", "Make or download it again."
        ) from error
    except OSError as error:
        if error.errno is not None:  # the disk's, not the decoder's
            raise
        raise DataError(f"The archive {shown} is damaged: {error}.", "Make or download it again.") from error
    except (NotImplementedError, RuntimeError, ValueError) as error:
        raise DataError(
            f"The archive {shown} cannot be unpacked: {error}.", "Unpack it yourself, and add the folder."
        ) from error


def _zip(path: Path, shown: str, folder: Path, budget: _Budget) -> None:
    with zipfile.ZipFile(path) as archive:
        seen: set[str] = set()
        for entry in archive.infolist():
            name = _zip_name(entry)
            if entry.is_dir() or name.endswith("/") or _is_junk(name):
                continue
            if entry.flag_bits & 1:
                raise DataError(
                    f"{shown} is encrypted ({name}).", "Unpack it with its password, and add the folder."
                )
            if (entry.external_attr >> 16) & 0o170000 == 0o120000:
                raise _link(shown, name)
            with archive.open(entry) as source:
                _write(source, _target(folder, name, shown, seen), shown, entry.compress_size, budget)


def _zip_name(entry: zipfile.ZipInfo) -> str:
    """Names without the mark of UTF-8 are in whatever the packer used: on Chinese Windows that is GBK."""
    if entry.flag_bits & 0x800:
        return entry.filename
    try:
        raw = entry.orig_filename.encode("cp437")
    except UnicodeEncodeError:
        return entry.filename
    read = []
    for encoding in ("utf-8", "gb18030"):
        with suppress(UnicodeDecodeError):
            read.append(raw.decode(encoding))
    # Two Chinese characters in GBK are often two letters of UTF-8 that nobody writes side by side.
    return next((name for name in read if _CHINESE.fullmatch(name)), read[0] if read else entry.filename)


def _tar(path: Path, shown: str, folder: Path, budget: _Budget) -> None:
    packed = path.stat().st_size
    before = budget.used
    with tarfile.open(path) as archive:
        seen: set[str] = set()
        for entry in archive:
            if entry.isdir() or _is_junk(entry.name):
                continue
            if entry.issym() or entry.islnk():
                raise _link(shown, entry.name)
            if not entry.isfile() or entry.sparse is not None:
                raise DataError(
                    f"{shown} holds {entry.name!r}, which is no file but a device or a pipe, or has holes.",
                    "Pack files alone.",
                )
            source = archive.extractfile(entry)
            assert source is not None
            target = _target(folder, entry.name, shown, seen)
            # What grows is the archive as a whole: its entries do not say how many packed bytes they took.
            _write(source, target, shown, packed, budget, before)
            if target.stat().st_size != entry.size:
                raise EOFError(f"{entry.name} is not whole")
            archive.members = []  # type: ignore[attr-defined]  # the names of a million samples are not kept


def _gzip(path: Path, shown: str, folder: Path, budget: _Budget) -> None:
    name = path.name[: -len(".gz")] or "data"
    with gzip.open(path) as source:
        _write(source, folder / name, shown, path.stat().st_size, budget)


def _write(
    source: IO[bytes] | gzip.GzipFile,
    target: Path,
    shown: str,
    packed: int,
    budget: _Budget,
    before: int | None = None,
) -> None:
    budget.another(shown)
    start = budget.used if before is None else before
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("xb") as out:
        while piece := source.read(_PIECE):
            budget.spend(shown, len(piece), packed, budget.used + len(piece) - start)
            out.write(piece)


def _target(folder: Path, name: str, shown: str, seen: set[str]) -> Path:
    """Where an entry goes: below the folder, or nowhere."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    bad = not parts or name.startswith(("/", "\\")) or ".." in parts or ":" in parts[0] or "\0" in name
    if bad or any(len(part.encode("utf-8", "surrogatepass")) > 255 for part in parts):
        raise DataError(
            f"{shown} holds the name {name[:100]!r}, which leads out of its folder or is none.",
            "Pack it with plain names.",
        )
    clean = "/".join(part for part in parts if part != ".")
    key = clean.casefold()
    if key in seen:
        raise DataError(f"{shown} holds {clean[:100]!r} twice.", "Pack each file once.")
    seen.add(key)
    return folder / clean


def _is_junk(name: str) -> bool:
    base = PurePosixPath(name).name
    return name.startswith(_PASSED_OVER) or base in _PASSED_OVER or base.startswith("._") or OUTSIDE in name


def _link(shown: str, name: str) -> DataError:
    return DataError(f"{shown} holds the link {name[:100]!r}.", "Pack the files themselves.")
