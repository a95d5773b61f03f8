"""A folder of files as a source looks at it."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from comfyloop import formats
from comfyloop.errors import ComfyLoopError, InvalidInput
from comfyloop.media import data_urls

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
OTHER_PICTURES = (".heic", ".heif", ".avif", ".tif", ".tiff", ".jxl", ".jp2", ".tga", ".psd", ".dng")
"""Of kinds that are not taken; they are told of, and not passed over."""
ROWS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
OUTSIDE = ".outside"
"""The folder of pictures that rows name by paths that lead out of the data."""
_DESCRIBING = frozenset(
    [
        "dataset_info.json",
        "dataset_infos.json",
        "dataset_dict.json",
        "state.json",
        "package.json",
        "index.json",
    ]
)
_JUNK = frozenset(["__MACOSX", "Thumbs.db", "desktop.ini"])
_LOOKED_AT = 4
"""Files of rows into which is looked to tell what they are."""


@dataclass(frozen=True)
class Tree:
    """Files below a folder, by their names relative to it, with slashes."""

    root: Path
    files: tuple[str, ...]

    def ending(self, *suffixes: str) -> tuple[str, ...]:
        return tuple(name for name in self.files if PurePosixPath(name).suffix.lower() in suffixes)

    def path(self, name: str) -> Path:
        return self.root / name

    @cached_property
    def names(self) -> frozenset[str]:
        return frozenset(self.files)

    @cached_property
    def pictures(self) -> tuple[str, ...]:
        """Those that are taken: by their endings, or by their bytes, as phones call JPEGs .heic too."""
        return tuple(
            name
            for name in self.ending(*PICTURES, *OTHER_PICTURES)
            if PurePosixPath(name).suffix.lower() in PICTURES or _is_taken(self.path(name))
        )

    @cached_property
    def other_pictures(self) -> frozenset[str]:
        """Pictures of kinds that are not taken."""
        return frozenset(self.ending(*OTHER_PICTURES)) - frozenset(self.pictures)

    def beside(self, name: str) -> Mapping[str, str]:
        """The files of the same name but for the ending, itself among them, by their endings in small letters."""
        return {PurePosixPath(one).suffix.lower(): one for one in self._by_stem[same_name(_stem(name))]}

    @cached_property
    def _by_stem(self) -> Mapping[str, tuple[str, ...]]:
        found: dict[str, list[str]] = {}
        for name in self.files:
            found.setdefault(same_name(_stem(name)), []).append(name)
        return {stem: tuple(names) for stem, names in found.items()}

    @cached_property
    def rows(self) -> tuple[str, ...]:
        """Files of rows; the only file there is may be called anything."""
        found = tuple(n for n in self.ending(*ROWS) if PurePosixPath(n).name.lower() not in _DESCRIBING)
        return found or (self.files if len(self.files) == 1 and not self.pictures else ())

    @cached_property
    def first_values(self) -> tuple[tuple[str, dict[str, Any]], ...]:
        """The first object of each of the first files of rows, by the file's name."""
        found = []
        for name in self.rows[:_LOOKED_AT]:
            try:
                item = next(iter(formats.each(self.path(name), encoding_of(self.path(name)))), None)
            except ComfyLoopError:
                continue
            if item is not None and item.value is not None:
                found.append((name, item.value))
        return tuple(found)


def tree_of(path: Path) -> Tree:
    """A folder, or one file as a folder of its own. What systems leave there, and links, are passed over.

    Raises:
        InvalidInput: There is nothing in it.
    """
    if not path.is_dir():
        return Tree(path.parent, (path.name,))
    files = tuple(sorted(_walk(path, "")))
    if not files:
        raise InvalidInput(f"There are no files in {path.name}.", "Name a folder with data in it.")
    for name in files:
        if not _is_text(name):
            shown = name.encode("utf-8", "backslashreplace").decode()[:200]
            raise InvalidInput(f"A file's name is no text: {shown}.", "Rename it.")
    return Tree(path, files)


def _is_taken(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return bool(data_urls.media_type(file.read(16)))
    except OSError:
        return False


def same_name(name: str) -> str:
    """A name as it is read: macOS writes é as two characters, others as one, and both mean one file."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _walk(folder: Path, before: str) -> Iterator[str]:
    for entry in os.scandir(folder):
        if entry.name.startswith(".") or entry.name in _JUNK:
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path), f"{before}{entry.name}/")
        elif entry.is_file(follow_symlinks=False):
            yield before + entry.name


def outside_name(source: str) -> str:
    """Where a picture lies that a row names by a path out of the data: whoever sends the data puts it there."""
    suffix = re.sub(r"[^.A-Za-z0-9]", "", PurePosixPath(source).suffix)[:8]
    return f"{OUTSIDE}/{hashlib.sha256(source.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}{suffix}"


def encoding_of(path: Path) -> str:
    """What the first bytes of a text say that it is in; empty where they say nothing."""
    with path.open("rb") as file:
        head = file.read(2)
    return "utf-16" if head in (b"\xff\xfe", b"\xfe\xff") else ""
