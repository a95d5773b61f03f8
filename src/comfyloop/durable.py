"""Durable, atomic writes: files and directory entries are flushed to disk."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

from comfyloop import platforms
from comfyloop.platforms import sync


def appear(place: Path, write: Callable[[Path], object]) -> None:
    """Make the directory `place`: it is there whole and on the disk, or not at all.

    Args:
        write: Fills an empty directory beside it, which then takes its name.

    Raises:
        OSError: The disk refuses. Whatever `write` raises goes on, too; nothing half made stays.
    """
    making = place.with_name(f".{place.name}.making")
    try:
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(parents=True)
        write(making)
        for path in (*making.rglob("*"), making):
            sync(path)
        platforms.rename(making, place)
        sync(place.parent)
    except BaseException:
        shutil.rmtree(making, ignore_errors=True)
        raise


def disappear(place: Path) -> None:
    """Remove a directory atomically: it is either complete or gone. A missing one is not an error.

    Raises:
        OSError: The disk refuses.
    """
    if place.is_dir():
        going = place.with_name(f".{place.name}.part")
        platforms.rename(place, going)
        shutil.rmtree(going)


def write_whole(file: Path, content: str | bytes, encoding: str = "utf-8", *, durable: bool = False) -> None:
    """Write a file that is there whole, or as it was, and its folder.

    Args:
        durable: Wait until the disk has it; not for what can be made again.

    Raises:
        OSError: The disk refuses.
    """
    data = content.encode(encoding) if isinstance(content, str) else content
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_whole(file, lambda part: part.write_bytes(data), durable=durable)


def replace_whole(file: Path, write: Callable[[Path], object], *, durable: bool = False) -> None:
    """The same for what other writers write: `write` makes a file beside it, which then takes its name. The folder
    is there already: one that was removed does not come back.

    Raises:
        OSError: The disk refuses. Whatever `write` raises goes on, too; nothing half made stays.
    """
    part = file.with_name(f".{file.name}.{os.getpid()}-{threading.get_ident():x}.part")
    try:
        write(part)
        if durable:
            sync(part)
        platforms.replace(part, file)
        if durable:
            sync(file.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise
