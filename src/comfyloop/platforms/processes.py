"""Processes that are started, held, and ended with whatever they have started themselves."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil

WINDOWS = sys.platform == "win32"
PR_SET_PDEATHSIG = 1
LOOK_SECONDS = 0.5


def apart() -> dict[str, Any]:
    """Arguments of `Popen` for a process with a group of its own: what is typed in our terminal is not for it."""
    if sys.platform == "win32":
        # No window: from a service without a console every program would open one.
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
    else:
        return {"start_new_session": True}


def alive(pid: int) -> bool:
    """Whether there is a process of that number."""
    return bool(psutil.pid_exists(pid))


def ask_to_end(process: subprocess.Popen[bytes]) -> None:
    """Let a program that was started `apart`, and what it started, tidy up and end.

    Windows has no such word for a process without a window: it is ended at once, which whatever is ours survives.
    """
    if sys.platform == "win32":
        kill_group(process.pid)
    else:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGTERM)


def kill_group(pid: int) -> None:
    """End a process that was started `apart`, if it is still there, and what it started."""
    if sys.platform == "win32":
        for one in _with_children(pid):
            with contextlib.suppress(psutil.Error):
                one.kill()
    else:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)


def freeze(pid: int) -> None:
    """Hold a process that was started `apart`, with what it started, in the middle of whatever it does."""
    if sys.platform == "win32":
        for one in _with_children(pid):
            with contextlib.suppress(psutil.Error):
                one.suspend()
    else:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGSTOP)


def thaw(pid: int) -> None:
    """Let what was frozen go on."""
    if sys.platform == "win32":
        for one in _with_children(pid):
            with contextlib.suppress(psutil.Error):
                one.resume()
    else:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGCONT)


def end_with(parent: int) -> None:
    """Have this process end at once when that one, which started it, is gone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_end_after, args=(parent,), name="parent watch", daemon=True).start()
    if not alive(parent) or (not WINDOWS and os.getppid() != parent):
        sys.exit("The process that started this one is gone.")


def ending_with_us() -> dict[str, Any]:
    """Arguments of `Popen` for a program that is told to end when the thread that starts it does, however it ends."""
    if sys.platform == "linux":
        return {"preexec_fn": lambda: ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)}
    else:
        return {}


def _end_after(parent: int) -> None:
    while alive(parent):
        time.sleep(LOOK_SECONDS)
    os._exit(1)


def signal_name(code: int) -> str:
    """What ended a process whose exit code is negative."""
    with contextlib.suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"


def python_of(environment: Path) -> Path:
    """The interpreter of a virtual environment."""
    return environment / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def _with_children(pid: int) -> list[psutil.Process]:
    """A process and all that it started, the last first."""
    try:
        root = psutil.Process(pid)
        return [*reversed(root.children(recursive=True)), root]
    except psutil.Error:
        return []
