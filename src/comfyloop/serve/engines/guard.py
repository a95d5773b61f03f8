"""Run a program that is not ours so that it never outlives us: ``python guard.py PARENT_PID PROGRAM ARGS``.

The program gets a process group of its own with all that it starts. When we are told to leave, or our parent
is gone, the group is told to leave, and killed when it has not done so in time. The program's exit code is
ours. This file imports nothing of ComfyLoop: it runs without its environment.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time

PATIENCE_SECONDS = 4.0


def main(parent: int, argv: list[str]) -> int:
    told = False

    def leave(*_: object) -> None:
        nonlocal told
        told = True

    for signal_ in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signal_, leave)
    program = subprocess.Popen(argv, start_new_session=True)
    while not told and alive(parent):
        try:
            return program.wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            continue
        finally:
            if program.returncode is not None:
                _signal(program.pid, signal.SIGKILL)  # what it started and left behind
    _signal(program.pid, signal.SIGTERM)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while program.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    _signal(program.pid, signal.SIGKILL)
    program.wait()
    return 0


def _signal(group: int, which: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, which)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
