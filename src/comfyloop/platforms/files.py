"""Files that another process may have open."""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path

WINDOWS = sys.platform == "win32"
PATIENCE_SECONDS = 10.0
"""For another process to close a file. Readers of ours have one open for milliseconds; virus scanners and indexers,
which look at whatever is new, for longer."""
NAP_SECONDS = 0.02


def replace(source: Path, target: Path) -> Path:
    """Give `source` the name `target`, whatever file had it.

    Windows refuses while a process has either of them open, which costs patience there and must cost nothing else:
    until it is done, both are as they were.

    Raises:
        OSError: The system refuses for good.
    """
    _patiently(lambda: source.replace(target))
    return target


def rename(source: Path, target: Path) -> Path:
    """Give a folder, or a file, a name that nothing has.

    Raises:
        OSError: There is something of that name, or the system refuses for good.
    """
    _patiently(lambda: source.rename(target))
    return target


def unlink(path: Path, missing_ok: bool = False) -> None:
    """Remove a file.

    Raises:
        OSError: It is not there, or the system refuses for good.
    """
    _patiently(lambda: path.unlink(missing_ok=missing_ok))


def sync(path: Path) -> None:
    """Have the disk keep a file's content, or a folder's names. Windows opens no folders and journals its renames
    itself, and flushes only what may be written to.

    Raises:
        OSError: The disk refuses.
    """
    if WINDOWS and path.is_dir():
        return
    handle = os.open(path, os.O_RDWR if WINDOWS else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_private(path: Path) -> bool:
    """Whether other users of this machine cannot look in. Under Windows a home's rights are the system's, and its
    permission bits say nothing."""
    return WINDOWS or not stat.S_IMODE(path.stat().st_mode) & 0o077


def _patiently(act: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            act()
            return
        except PermissionError:
            if not WINDOWS or time.monotonic() > deadline:
                raise
        time.sleep(NAP_SECONDS)
