"""What differs between Windows and the other systems: locks, files that somebody has open, folders on the disk,
programs that outlive ComfyUI."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

PATIENCE_SECONDS = 5.0
"""For a reader, a virus scanner or an indexer to close a file; without Windows nobody waits."""


def lock(file: Any) -> bool:
    """Hold a file until it is closed, or this process ends; False when another process does."""
    try:
        if sys.platform == "win32":
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def replace(source: Path, target: Path) -> None:
    """Give `source` the name of `target`. Windows refuses while somebody has one open; both stay as they were."""
    _patiently(lambda: os.replace(source, target))


def unlink(path: Path) -> None:
    """Remove a file, if it is there."""
    _patiently(lambda: path.unlink(missing_ok=True))


def sync_folder(folder: Path) -> None:
    """Have the disk keep the names in a folder. Windows opens no folders, and journals its renames itself."""
    if sys.platform != "win32":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def start_apart(command: Sequence[str], cwd: Path, env: Mapping[str, str], log: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start a program that neither Ctrl-C in ComfyUI's terminal nor ComfyUI's end reaches."""
    if sys.platform == "win32":
        apart = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW
        try:  # out of the job with which a desktop application ends all that it has started
            return _start(command, cwd, env, log, creationflags=apart | subprocess.CREATE_BREAKAWAY_FROM_JOB)
        except PermissionError:  # that job lets nobody go
            return _start(command, cwd, env, log, creationflags=apart)
    else:
        return _start(command, cwd, env, log, start_new_session=True)


def _start(
    command: Sequence[str], cwd: Path, env: Mapping[str, str], log: IO[bytes], **how: Any
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **how)


def _patiently(act: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            act()
            return
        except PermissionError:
            if os.name != "nt" or time.monotonic() > deadline:
                raise
        time.sleep(0.02)
