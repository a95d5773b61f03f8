"""A file as a lock that no death of its holder leaves behind, and that one process hands down to another."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

OWNER, HEIR = 0, 1
"""Bytes of the file that are locked under Windows, where no descriptor is handed down: the heir takes the second while
the owner has the first, so that no moment is unlocked."""
INHERIT = "inherit"
INHERIT_SECONDS = 60.0
"""For a process to start Python and take its lock over."""
NAP_SECONDS = 0.02


def lock(path: Path, patience: float = 0.0) -> int | None:
    """A descriptor that holds the lock until it is closed; None where another process keeps it so long."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    deadline = time.monotonic() + patience
    while not _take(fd):
        if time.monotonic() > deadline:
            os.close(fd)
            return None
        time.sleep(NAP_SECONDS)
    return fd


def is_locked(path: Path) -> bool:
    """Whether a process holds it now."""
    try:
        fd = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        return not _take(fd, shared=True)
    finally:
        _let_go(fd)


class HandedDown:
    """A lock on its way to a process that is being started: `environment` and `options` are for its start, `wait` is
    for after it. Both have the lock then; whoever started it closes his descriptor.

    Args:
        variable: In which the new process is told; it calls `take_over` with what it finds there.
    """

    environment: Mapping[str, str]
    options: Mapping[str, Any]

    def __init__(self, fd: int, variable: str) -> None:
        self._fd = fd
        if sys.platform == "win32":
            _unlock(fd, HEIR)
            self.environment, self.options = {variable: INHERIT}, {}
        else:
            self.environment, self.options = {variable: str(fd)}, {"pass_fds": (fd,)}

    def wait(self, child: subprocess.Popen[bytes]) -> None:
        """Until the process has taken it over, or is gone."""
        if sys.platform == "win32":
            while child.poll() is None and _lock(self._fd, HEIR):
                _unlock(self._fd, HEIR)
                time.sleep(NAP_SECONDS)


def take_over(told: str, path: Path) -> int | None:
    """The descriptor of a lock that was handed down to this process, with what the variable says."""
    if told != INHERIT:
        fd = int(told)
        os.set_inheritable(fd, False)
        return fd
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    deadline = time.monotonic() + INHERIT_SECONDS
    while not _lock(fd, HEIR):
        if time.monotonic() > deadline:
            os.close(fd)
            return None
        time.sleep(NAP_SECONDS)
    return fd


if sys.platform == "win32":

    def _take(fd: int, shared: bool = False) -> bool:
        if _lock(fd, OWNER):
            if _lock(fd, HEIR):
                return True
            _unlock(fd, OWNER)
        return False

    def _let_go(fd: int) -> None:
        for byte in (OWNER, HEIR):
            _unlock(fd, byte)  # closing alone lets go of it "at some time"
        os.close(fd)

    def _lock(fd: int, byte: int) -> bool:
        os.lseek(fd, byte, os.SEEK_SET)
        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _unlock(fd: int, byte: int) -> None:
        os.lseek(fd, byte, os.SEEK_SET)
        with contextlib.suppress(OSError):  # it was not ours
            msvcrt.locking(fd, msvcrt.LK_UNLCK, 1)

else:

    def _take(fd: int, shared: bool = False) -> bool:
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _let_go(fd: int) -> None:
        os.close(fd)

    def _lock(fd: int, byte: int) -> bool:
        return _take(fd)
