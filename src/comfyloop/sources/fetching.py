"""Data sets that are not sent but fetched: built in, or from a hub by id."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from comfyloop import formats
from comfyloop.durable import appear
from comfyloop.errors import InvalidInput, TooLarge
from comfyloop.sources.builtin import BUILTIN
from comfyloop.sources.hubs import HUBS, HubFile
from comfyloop.sources.hubs.choosing import chosen
from comfyloop.sources.tree import tree_of

UPLOAD = "upload"
_HUB = re.compile(
    r"(?P<hub>[a-z]+):(?P<id>\w[\w.-]*(/\w[\w.-]*)?)(@(?P<revision>[\w./-]+))?(:(?P<under>[\w./ -]+))?"
)

Tell = Callable[[int, int], object]
"""How many bytes there are, of how many."""


class Fetched(NamedTuple):
    licence: str
    notes: tuple[str, ...]


def check_source(source: str) -> None:
    """Raises InvalidInput: There is no such source."""
    if source == UPLOAD:
        return
    kind, _, name = source.partition(":")
    if kind == "builtin":
        if name not in BUILTIN:
            raise InvalidInput(f"There is no built-in data set {name!r}.", f"There are {', '.join(BUILTIN)}.")
        return
    found = _HUB.fullmatch(source)
    if found is None or found["hub"] not in HUBS:
        raise InvalidInput(
            f"{source!r} names no data set.",
            "Name a folder or file, a built-in set (builtin:emoji), or one of a hub: hf:OWNER/NAME, ms:OWNER/NAME, "
            "with @REVISION and :FOLDER behind it where you want them.",
        )


def fetch(source: str, folder: Path, cache: Path, most_bytes: int, limit: int, tell: Tell) -> Fetched:
    """Put a data set's files into a folder; what is there already is not fetched again.

    Args:
        limit: Rows that are wanted, at most; 0: all.

    Raises:
        InvalidInput, NotFound, EngineUnavailable, TooLarge, StorageError: With what to do.
    """
    check_source(source)
    kind, _, name = source.partition(":")
    if kind == "builtin":
        builtin = BUILTIN[name]
        if not any(folder.iterdir()):
            folder.rmdir()
            appear(folder, lambda made: builtin.make(made, cache / "datasets"))
        return Fetched(builtin.licence, ())
    asked = _HUB.fullmatch(source)
    assert asked is not None
    hub = HUBS[kind]()
    listing = hub.list(asked["id"], asked["revision"])
    files, notes = chosen(listing.files, asked["under"] or "")
    total = sum(file.bytes for file in files)
    done = 0
    for file in files:
        if done + file.bytes > most_bytes or (total > most_bytes and not limit):
            raise TooLarge(
                f"{source} has {max(total, done + file.bytes)} bytes of data; {most_bytes} are allowed.",
                "Take a part of it (--limit, or :FOLDER behind its id), or raise the setting max_dataset_bytes.",
            )
        tell(done, total)
        if not _is_there(folder / file.path, file):
            hub.get(asked["id"], asked["revision"], file, folder)
        done += file.bytes
        if limit and _rows(folder) >= limit:
            break
    tell(done, total)
    return Fetched(listing.licence, notes)


def _is_there(path: Path, file: HubFile) -> bool:
    """Whether a file has come; an archive may be the folder that it was unpacked to."""
    return path.is_dir() or (path.is_file() and path.stat().st_size == file.bytes)


def _rows(folder: Path) -> int:
    """Rows of what has come, as far as files of rows tell."""
    tree = tree_of(folder)
    return sum(sum(1 for _ in formats.each(tree.path(name))) for name in tree.rows)
