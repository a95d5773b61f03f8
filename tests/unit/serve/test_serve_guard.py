"""A program under the guard never outlives the process that asked for it, nor does what it has started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from comfyloop.serve.engines import guard
from tests.unit.serve.test_serve_router import eventually

FAMILY = """
import subprocess, sys, time, pathlib
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
pathlib.Path(sys.argv[1]).write_text(str(child.pid))
time.sleep(60)
"""


def guarded(parent: int, *argv: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, guard.__file__, str(parent), *argv])


def test_the_exit_code_is_the_programs() -> None:
    assert guarded(os.getpid(), sys.executable, "-c", "raise SystemExit(7)").wait(20) == 7


@pytest.mark.parametrize("how", ["told", "orphaned"])
def test_all_that_the_program_started_ends(tmp_path: Path, how: str) -> None:
    parent = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    guarding = guarded(parent.pid, sys.executable, "-c", FAMILY, str(tmp_path / "pid"))
    try:
        eventually(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), 20)
        grandchild = int((tmp_path / "pid").read_text())
        assert psutil.pid_exists(grandchild)
        if how == "told":
            guarding.send_signal(signal.SIGTERM)
        else:
            parent.kill()
            parent.wait()
        assert guarding.wait(20) == 0
        eventually(lambda: not psutil.pid_exists(grandchild) or _is_zombie(grandchild), 10)
    finally:
        parent.kill()
        parent.wait()


def _is_zombie(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
