"""Lets ComfyLoop believe that it runs under Windows, in every Python that is started with this folder on PYTHONPATH.

No such machine is at hand where the tests run, so this is a double of what matters of one. Only ComfyLoop's own modules
see it (by what `import os` gives them); libraries and the standard library go on as they are. What it changes:

* `sys.platform` is win32 and `os.name` nt; there is a `msvcrt` that locks bytes, and no `fcntl`, `resource`, `pwd`.
* `os` has no `fork`, `setsid`, `killpg`, `nice`, `getuid`, `sched_getaffinity`; `os.kill` ends a process at once,
  whatever it is told, and with 0 it is refused (under Windows that would be a Ctrl-C).
* `signal` has what Windows has; `terminate` is `kill`; `Popen` refuses `pass_fds` and `preexec_fn`.
* `socket` has no `AF_UNIX`, hands no descriptors over, and has `SO_EXCLUSIVEADDRUSE` for `SO_REUSEADDR`; `/proc`
  cannot be opened; no folder can be opened.
* Paths have fewer than 260 characters (folders 248), no `<>:"|?*`, no part that ends with a dot or a blank, and no name
  of a device (CON, NUL, COM1, ...).
* A file that a process of this user has open can neither be replaced nor renamed nor removed, and text is read and
  written in the code page GBK wherever no encoding is told.
"""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import errno
import io
import os
import pathlib
import re
import struct
import subprocess
import sys
import types
from typing import Any

OURS = ("comfyloop", "comfyui", "custom_nodes")
CODE_PAGE = "gbk"
BETWEEN = {"sitecustomize", "pathlib", "shutil", "io", "_io", "tempfile", "contextlib", "zipfile"}
"""Modules that may stand between ComfyLoop and what is changed."""


def is_ours(module: dict) -> bool:
    """Whether code is ComfyLoop's, by its globals: `python -m comfyloop.…` and `python -c …` too."""
    name = module.get("__name__") or ""
    if name == "__main__":
        own = (module.get("__package__") or "").split(".")[0] in OURS
        return own or "comfyloop" in module.get("__file__", "comfyloop")
    # ComfyUI calls what it imports by its path.
    return name.split(".")[0] in OURS or (name.startswith("/") and "comfyloop" in name)


def caller_is_ours(depth: int = 2) -> bool:
    """Whether the first frame that is not the standard library's is ComfyLoop's."""
    frame: types.FrameType | None = sys._getframe(depth)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name not in BETWEEN and not name.startswith(("importlib", "pathlib.")):
            return is_ours(frame.f_globals)
        frame = frame.f_back
    return False


class Seen(types.ModuleType):
    """A module as Windows has it: some names gone, some in its own way; whatever is set is set on the real one."""

    def __init__(self, real: types.ModuleType, hidden: set[str], own: dict[str, object]) -> None:
        super().__init__(real.__name__, real.__doc__)
        object.__setattr__(self, "_seen", (real, hidden, own))

    def __getattribute__(self, name: str) -> object:
        real, hidden, own = object.__getattribute__(self, "__dict__")["_seen"]
        if name in own:
            return own[name]
        if name in hidden:
            raise AttributeError(f"module {real.__name__!r} has no attribute {name!r} under Windows")
        return getattr(real, name)

    def __setattr__(self, name: str, value: object) -> None:
        real, _, own = object.__getattribute__(self, "__dict__")["_seen"]
        if name in own:
            own[name] = value
        setattr(real, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(object.__getattribute__(self, "__dict__")["_seen"][0], name)

    def __dir__(self) -> list[str]:
        real, hidden, own = object.__getattribute__(self, "__dict__")["_seen"]
        return sorted({*dir(real), *own} - hidden)


# --- os, signal, socket, subprocess


def _kill(pid: int, number: int) -> None:
    import signal

    if number == 0:
        raise AssertionError("os.kill(pid, 0) is a Ctrl-C under Windows")
    os.kill(pid, signal.SIGKILL)


_open_descriptor = os.open


def _open(path: Any, flags: int, mode: int = 0o777, **more: Any) -> int:
    if flags & os.O_CREAT:
        _refuse_name(path)
    if os.path.isdir(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))
    return _open_descriptor(path, flags, mode, **more)


_HIDDEN_OS = {
    "fork", "forkpty", "setsid", "getsid", "killpg", "nice", "getuid", "geteuid", "getgid", "getegid",
    "sched_getaffinity", "sched_setaffinity", "getpgid", "setpgid", "getpgrp", "getpriority", "setpriority",
    "WNOHANG", "mkfifo", "fchmod", "fchown", "chown", "getloadavg", "posix_fadvise", "O_DIRECTORY",
    "O_CLOEXEC", "O_NONBLOCK", "O_NOFOLLOW", "pread", "pwrite", "sendfile", "uname", "wait", "wait3", "wait4",
    "WIFEXITED", "WEXITSTATUS", "memfd_create", "eventfd", "pidfd_open", "openpty", "sysconf", "statvfs",
    "register_at_fork",
}  # fmt: skip
_WINDOWS_SIGNALS = {"SIGABRT", "SIGFPE", "SIGILL", "SIGINT", "SIGSEGV", "SIGTERM"}


def _popen() -> type:
    class Popen(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *args: Any, creationflags: int = 0, **more: Any) -> None:
            for refused in ("pass_fds", "preexec_fn"):
                if more.pop(refused, None):
                    raise ValueError(f"{refused} is not supported on Windows platforms")
            more.pop("start_new_session", None)
            more.pop("process_group", None)
            if creationflags & CREATE_NEW_PROCESS_GROUP:
                more["start_new_session"] = True
            super().__init__(*args, **more)

        def terminate(self) -> None:
            self.kill()

        def send_signal(self, number: int) -> None:
            self.kill()

    return Popen


CREATE_NEW_PROCESS_GROUP, CREATE_NO_WINDOW, DETACHED_PROCESS = 0x200, 0x08000000, 0x8
CREATE_BREAKAWAY_FROM_JOB = 0x01000000

# --- locks of bytes

_F_OFD_SETLK = 37


def _locking(fd: int, mode: int, count: int) -> None:
    """Open file descriptions' own locks, from where the file stands: as Windows has them for handles."""
    import fcntl

    kind = fcntl.F_UNLCK if mode == MSVCRT.LK_UNLCK else fcntl.F_WRLCK
    told = struct.pack("hhqqi4x", kind, os.SEEK_SET, os.lseek(fd, 0, os.SEEK_CUR), count, 0)
    try:
        fcntl.fcntl(fd, _F_OFD_SETLK, told)
    except BlockingIOError:
        raise PermissionError(errno.EACCES, "Permission denied") from None


MSVCRT = types.ModuleType("msvcrt")
MSVCRT.LK_LOCK, MSVCRT.LK_NBLCK, MSVCRT.LK_UNLCK = 1, 2, 0  # type: ignore[attr-defined]
MSVCRT.locking = _locking  # type: ignore[attr-defined]

# --- names that files cannot have

LONGEST, LONGEST_FOLDER = 259, 247
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE)


def _refuse_name(path: Any, longest: int = LONGEST) -> None:
    """As Windows does when a file or folder is made."""
    if not isinstance(path, str | os.PathLike):
        return
    whole = os.path.abspath(os.fspath(path))
    if not isinstance(whole, str) or whole.startswith(("/dev/", "/proc/")):
        return
    if len(whole) > longest:
        raise FileNotFoundError(
            errno.ENOENT, f"The path has {len(whole)} characters, more than {longest}", whole
        )
    name = os.path.basename(whole)
    if set(name) & set('<>:"|?*') or name.endswith((".", " ")) or _DEVICE.fullmatch(name):
        raise OSError(errno.EINVAL, "Windows can have no file of that name", whole)


_make_folder = os.mkdir


def _mkdir(path: Any, *args: Any, **more: Any) -> None:
    if caller_is_ours():
        _refuse_name(path, LONGEST_FOLDER)
    _make_folder(path, *args, **more)


# --- files that somebody has open


def _is_open(path: str) -> bool:
    try:
        about = os.stat(path, follow_symlinks=False)
    except OSError:
        return False
    if not os.path.isfile(path) or os.path.islink(path):
        return False
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    found = os.stat(f"/proc/{pid}/fd/{fd}")
                    if (found.st_ino, found.st_dev) == (about.st_ino, about.st_dev):
                        return True
    return False


def _guarded(name: str) -> None:
    real = getattr(os, name)

    def act(*paths: Any, **more: Any) -> Any:
        if caller_is_ours() and "dir_fd" not in more:
            if name in ("replace", "rename"):
                _refuse_name(paths[1])
            for path in paths[:2]:
                if isinstance(path, str | os.PathLike) and _is_open(os.fspath(path)):
                    raise PermissionError(
                        errno.EACCES, "The file is used by another process", os.fspath(path)
                    )
        return real(*paths, **more)

    setattr(os, name, act)
    builtins_of = getattr(pathlib, "os", None)
    if builtins_of is not os and builtins_of is not None:
        setattr(builtins_of, name, act)


# --- text without a told encoding, and /proc

_real_open = io.open


def _open_text(
    file: Any, mode: str = "r", buffering: int = -1, encoding: str | None = None, *more: Any, **named: Any
) -> Any:
    if caller_is_ours():
        if "b" not in mode and encoding is None:
            encoding = CODE_PAGE
        if set(mode) & set("wax"):
            _refuse_name(file)
        if isinstance(file, str | os.PathLike) and os.fspath(file).startswith("/proc"):
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", os.fspath(file))
    return _real_open(file, mode, buffering, encoding, *more, **named)


# --- how ComfyLoop's modules come to see it

_real_import = builtins.__import__
_views: dict[str, types.ModuleType] = {}


def _view(name: str, real: types.ModuleType) -> types.ModuleType:
    if name in _views:
        return _views[name]
    match name:
        case "sys":
            seen = Seen(real, set(), {"platform": "win32"})
        case "os":
            seen = Seen(real, _HIDDEN_OS, {"name": "nt", "kill": _kill, "open": _open})
        case "signal":
            gone = {n for n in dir(real) if n.startswith("SIG") and n.isupper() and n not in _WINDOWS_SIGNALS}
            gone -= {"SIG_DFL", "SIG_IGN"}
            seen = Seen(real, gone | {"pthread_sigmask", "setitimer", "alarm", "pause", "sigwait"}, {})
        case "socket":
            gone = {
                "AF_UNIX",
                "send_fds",
                "recv_fds",
                "MSG_DONTWAIT",
                "SOCK_SEQPACKET",
                "SO_REUSEADDR",
                "SO_REUSEPORT",
            }
            seen = Seen(real, gone, {"SO_EXCLUSIVEADDRUSE": real.SO_REUSEADDR})
        case "subprocess":
            own = {"CREATE_NEW_PROCESS_GROUP": CREATE_NEW_PROCESS_GROUP, "CREATE_NO_WINDOW": CREATE_NO_WINDOW,
                   "DETACHED_PROCESS": DETACHED_PROCESS, "CREATE_BREAKAWAY_FROM_JOB": CREATE_BREAKAWAY_FROM_JOB,
                   "Popen": _popen()}  # fmt: skip
            seen = Seen(real, set(), own)
        case "psutil":
            seen = Seen(real, set(), {"BELOW_NORMAL_PRIORITY_CLASS": 10, "IDLE_PRIORITY_CLASS": 19})
        case "ctypes":
            seen = Seen(real, set(), {"CDLL": _no_library})
        case _:
            return real
    _views[name] = seen
    return seen


def _no_library(name: str | None) -> ctypes.CDLL:
    raise OSError(f"there is no {name} under Windows")


_GONE = {"fcntl", "resource", "pwd", "grp", "termios", "pty", "tty", "syslog"}


def _import(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
    if level == 0 and globals is not None and is_ours(globals):
        if name in _GONE:
            raise ModuleNotFoundError(f"No module named {name!r} under Windows", name=name)
        if name == "msvcrt":
            return MSVCRT
        found = _real_import(name, globals, locals, fromlist, level)
        return _view(found.__name__, found) if "." not in name else found
    return _real_import(name, globals, locals, fromlist, level)


for _name in ("replace", "rename", "unlink", "remove"):
    _guarded(_name)
os.mkdir = _mkdir
builtins.open = _open_text
io.open = _open_text
builtins.__import__ = _import
