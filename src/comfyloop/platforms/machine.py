"""What this machine has, and how much of it a process of ours may take."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import subprocess
import sys
from pathlib import Path

import psutil

if sys.platform != "win32":
    import resource

LINUX, MAC = sys.platform == "linux", sys.platform == "darwin"
MANY_FILES = 8192


def can_fork() -> bool:
    """Whether a process that has imported torch can be forked and go on in the fork. Under macOS it can not: Metal and
    Accelerate end it."""
    return LINUX


def cores() -> int:
    """That this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    else:
        return os.cpu_count() or 1


def user() -> str:
    """`UID:GID` as programs that start containers take it; empty where users have no numbers."""
    if sys.platform == "win32":
        return ""
    else:
        return f"{os.getuid()}:{os.getgid()}"


def step_back(nice: int, first_to_go: int = 0) -> None:
    """Let everything else go first. What has a lower priority already keeps it.

    Args:
        nice: 0 to 19, as POSIX counts.
        first_to_go: 0 to 1000: how much sooner than others to be ended when memory runs out, where the system asks.
    """
    if sys.platform == "win32":
        with contextlib.suppress(psutil.Error, OSError):
            if nice > 0:
                psutil.Process().nice(psutil.BELOW_NORMAL_PRIORITY_CLASS)
    else:
        with contextlib.suppress(OSError):
            os.nice(max(0, nice - os.nice(0)))
    if sys.platform == "linux":
        if os.getsid(0) == os.getpid():
            # Linux shares the processor out among sessions first, and niceness counts only within one.
            with contextlib.suppress(OSError):
                Path("/proc/self/autogroup").write_text(str(nice), "utf-8")
        if first_to_go:
            with contextlib.suppress(OSError):
                Path("/proc/self/oom_score_adj").write_text(str(first_to_go), "utf-8")


def give_memory_back() -> None:
    """Return freed memory to the system: glibc keeps what the many threads that load adapters have freed, each
    for itself, and a process that swaps all day grows by it."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def allow_files(most: int = MANY_FILES) -> int:
    """Files that this process may have open, raised as far as it may."""
    if sys.platform == "win32":
        return 2048  # the C library's own
    else:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = most if hard == resource.RLIM_INFINITY else min(hard, most)
        if wanted > soft:
            with contextlib.suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
                return wanted
        return soft


def processor_name() -> str:
    """As its maker calls it: `Apple M1 Pro`."""
    if MAC:
        return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor()
    if LINUX:
        for line in _processor_lines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def processor_has_bfloat16() -> bool | None:
    """Whether it multiplies bfloat16, as far as can be told without torch; None where it cannot."""
    if not LINUX:
        return None
    flags = " ".join(_processor_lines())
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _processor_lines() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return []


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()
